"""G: the authors' supernet, written plainly from the method's description; what every speed-up here is measured against.

A standard ViT block with one fused qkv projection and matmul-softmax attention over all tokens; prompts appended last,
which run on past VPT's depth; one LoRA down matrix for q, k and v; an Adapter with QuickGELU behind the MLP. A subnet is
slices of the stored weights, whose elastic axis is the last one of every ``up``. Source: NOAH (arXiv 2206.04673) with the
choices of its released code, which the recipe "released" names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from peft_noah import Architecture


def drop_path(y: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Stochastic depth."""
    if not training or not rate:
        return y
    return y * (torch.rand(len(y), 1, 1, device=y.device) >= rate) / (1 - rate)


class ReferenceBlock(nn.Module):
    """One block, with copies of the prompt weights of a NOAH block of a transformers ViT."""

    def __init__(self, block: nn.Module, dropout: float, drop_path: float) -> None:
        super().__init__()
        attention = block.attention
        sites = [attention.q_proj, attention.k_proj, attention.v_proj]
        weight = torch.cat([site.get_base_layer().weight for site in sites])
        self.qkv = nn.Linear(weight.shape[1], weight.shape[0], device="meta").requires_grad_(False)
        self.qkv.weight = nn.Parameter(weight, requires_grad=False)
        bias = torch.cat([site.get_base_layer().bias for site in sites])
        self.qkv.bias = nn.Parameter(bias, requires_grad=False)
        self.proj, self.heads = _leaf(attention.o_proj), attention.num_attention_heads
        self.norm1, self.norm2 = _leaf(block.layernorm_before), block.layernorm_after
        self.fc1, self.fc2 = block.mlp.fc1, _leaf(block.mlp.fc2)
        loras = [site.noah_lora["default"] for site in sites]
        adapter, vpt = block.mlp.fc2.noah_adapter["default"], block.layernorm_before.noah_vpt["default"]
        self.lora_down = _copy(loras[0].down)  # (R, D)
        self.lora_up = nn.ParameterList([_copy(lora.up.T) for lora in loras])  # (D, R) each
        self.adapter_down, self.adapter_down_bias = _copy(adapter.down), _copy(adapter.down_bias)
        self.adapter_up, self.adapter_up_bias = _copy(adapter.up.T), _copy(adapter.up_bias)
        self.tokens = _copy(vpt.tokens)
        self.dropout, self.drop_path = nn.Dropout(dropout), drop_path

    def forward(self, x: torch.Tensor, carried: int, rank: int, width: int, count: int) -> torch.Tensor:
        """``x`` (B, T, D) with ``carried`` tokens at its end; ``count`` > 0 puts as many own ones in their place."""
        if count:
            tokens = self.dropout(self.tokens[:count].expand(len(x), -1, -1))
            x = torch.cat([x[:, : x.shape[1] - carried], tokens], dim=1)
        h = self.norm1(x)
        qkv = self.qkv(h)
        if rank:
            low = F.linear(self.dropout(h), self.lora_down[:rank])
            qkv = qkv + torch.cat([F.linear(low, up[:, :rank]) for up in self.lora_up], dim=-1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1)
        h = self.proj((attention @ v).transpose(1, 2).flatten(2))
        x = x + drop_path(h, self.drop_path, self.training)
        h = drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))), self.drop_path, self.training)
        if width:
            low = F.linear(h, self.adapter_down[:width], self.adapter_down_bias[:width])
            low = self.dropout(low * torch.sigmoid(1.702 * low))
            h = h + F.linear(low, self.adapter_up[:, :width], self.adapter_up_bias)
        return x + h


class Reference(nn.Module):
    """The whole model, on the frozen weights of ``model`` and copies of all that is trained in it.

    Args:
        model: a `PeftModel` of recipe "released" around a transformers ViT classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config, base = model.peft_config["default"], model.base_model.model
        last = max(1, len(base.vit.layers) - 1)
        self.embeddings, self.norm = base.vit.embeddings, base.vit.layernorm
        self.blocks = nn.ModuleList(
            ReferenceBlock(block, config.dropout, config.drop_path * index / last)
            for index, block in enumerate(base.vit.layers)
        )
        head = base.classifier.modules_to_save["default"]
        self.head = nn.Linear(head.in_features, head.out_features, device=head.weight.device)
        self.head.load_state_dict(head.state_dict())
        self.checkpointing = False
        self.train(model.training)

    def set_architecture(self, architecture: Architecture) -> None:
        """Choose the subnet."""
        self.rows = list(zip(*(architecture[name] for name in ("lora", "adapter", "vpt")), strict=True))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes)."""
        other_size = pixel_values.shape[-2:] != tuple(self.embeddings.patch_embeddings.image_size)
        x, carried = self.embeddings(pixel_values, interpolate_pos_encoding=other_size), 0
        for block, row in zip(self.blocks, self.rows, strict=True):
            if self.checkpointing:
                x = checkpoint(block, x, carried, *row, use_reentrant=False)
            else:
                x = block(x, carried, *row)
            carried = row[-1] or carried
        return self.head(self.norm(x)[:, 0])


def _leaf(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _copy(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone().contiguous())
