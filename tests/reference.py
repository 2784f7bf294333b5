"""The paper's equations once more, written plainly on a frozen backbone's weights: the source of expected tensors."""

import torch
import torch.nn.functional as F

FAMILIES = {
    "vit": {"blocks": "vit.layers", "norms": ("layernorm_before", "layernorm_after"), "scales": (None, None)},
    "dinov2": {
        "blocks": "dinov2.encoder.layer",
        "norms": ("norm1", "norm2"),
        "scales": ("layer_scale1", "layer_scale2"),
    },
}


@torch.no_grad()
def reference_logits(base, model, architecture, pixels):
    """Logits of a subnet of ``model`` on the frozen ``base``, by loops over blocks and modules."""
    family, config = FAMILIES[base.config.model_type], model.peft_config["default"]
    weights = {name: p for name, p in model.named_parameters() if ".noah_" in name}

    def weight(block, path, name):
        return weights[f"base_model.model.{family['blocks']}.{block}.{path}.default.{name}"]

    core = getattr(base, base.config.model_type)
    x = core.embeddings(pixels)
    tokens = None
    last = {"vit": "mlp.fc2", "dinov2": "layer_scale2"}[base.config.model_type]
    for i, block in enumerate(base.get_submodule(family["blocks"])):
        rank, width, count = (architecture[name][i] for name in ("lora", "adapter", "vpt"))
        cls, patches = x[:, :1], x[:, 1:]
        if count:
            tokens = weight(i, f"{family['norms'][0]}.noah_vpt", "tokens")[:count].expand(len(x), -1, -1)
        elif config.vpt_past_depth == "drop":
            tokens = None
        parts = [cls, patches] if tokens is None else [cls, tokens, patches]
        x = torch.cat(parts, dim=1)

        def projection(name, h, i=i, block=block, rank=rank):
            out = block.attention.get_submodule(f"{name}_proj")(h)
            if not rank or (name == "v" and not config.lora_shared_down):
                return out
            owner = "q" if config.lora_shared_down else name
            down = weight(i, f"attention.{owner}_proj.noah_lora", "down")[:rank]
            return out + config.lora_scale * h @ down.T @ weight(i, f"attention.{name}_proj.noah_lora", "up")[:rank]

        h = block.get_submodule(family["norms"][0])(x)
        heads = base.config.num_attention_heads
        q, k, v = (projection(n, h).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = block.attention.o_proj(attention.transpose(1, 2).flatten(2))
        scale1, scale2 = (block.get_submodule(s) if s else (lambda t: t) for s in family["scales"])
        x = x + scale1(h)

        h = block.get_submodule(family["norms"][1])(x)
        h = scale2(block.mlp.fc2(F.gelu(block.mlp.fc1(h))))
        if width:
            down, bias, up = (weight(i, f"{last}.noah_adapter", n)[:width] for n in ("down", "down_bias", "up"))
            hidden = h @ down.T + bias
            phi = (
                hidden * torch.sigmoid(1.702 * hidden) if config.adapter_activation == "quick_gelu" else hidden.relu()
            )
            h = h + phi @ up + weight(i, f"{last}.noah_adapter", "up_bias")
        x = x + h
        if tokens is not None:
            tokens = x[:, 1 : 1 + tokens.shape[1]]
            x = torch.cat([x[:, :1], x[:, 1 + tokens.shape[1] :]], dim=1)
    x = core.layernorm(x)
    head = model.base_model.model.classifier.modules_to_save.default
    if base.config.model_type == "dinov2":
        return head(torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=1))
    return head(x[:, 0])


# ---------------------------------------------------------------------- modules beyond the paper's, on a leaf's output y


def adapter_plus(y, down, down_bias, up, up_bias, scale):
    """Steitz and Roth, Adapters Strike Back (CVPR 2024): a bottleneck with GELU and a factor per channel."""
    hidden = F.gelu(torch.einsum("btd,ad->bta", y, down) + down_bias)
    return y + scale * (torch.einsum("bta,ad->btd", hidden, up) + up_bias)


def ssf(y, gamma, beta):
    """Scaling and Shifting Your Features (arXiv 2210.08823), whose gamma is 1 more than ours."""
    return (1 + gamma) * y + beta


def bitfit(y, beta):
    """BitFit (arXiv 2106.10199): the bias, by how much it has changed."""
    return y + beta


def rep_adapter(y, down, down_bias, up, up_bias):
    """RepAdapter (arXiv 2302.08106): a bottleneck without an activation, here dense and with s = 1."""
    return y + torch.einsum("bta,ad->btd", torch.einsum("btd,ad->bta", y, down) + down_bias, up) + up_bias


@torch.no_grad()
def hooked_logits(base, leaves, pixels):
    """Logits of a frozen ``base`` with each leaf's output y replaced by ``leaves[name](y)``."""
    handles = [
        base.get_submodule(name).register_forward_hook(lambda _, inputs, y, change=change: change(y))
        for name, change in leaves.items()
    ]
    try:
        return base(pixel_values=pixels).logits
    finally:
        for handle in handles:
            handle.remove()
