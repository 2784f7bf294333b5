"""Teach peft-noah a model family it does not know: a small Vision Transformer of one's own.

    python examples/add_backbone.py

One `Backbone` says where the blocks are and which leaves in them are the sites; everything else follows. `check_backbone`
tries every site, and says whether `fast_forward` knows the family.
"""

import torch
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from peft_noah import Backbone, NoahConfig, check_backbone, register_backbone


class MyConfig(PreTrainedConfig):
    model_type = "my_vit"
    width: int = 32
    image_size: int = 32
    patch_size: int = 8


class Attention(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width), Attention(width)
        self.norm2, self.mlp = nn.RMSNorm(width), nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MyViT(PreTrainedModel):
    config_class = MyConfig

    def __init__(self, config):
        super().__init__(config)
        patch, patches = config.patch_size, (config.image_size // config.patch_size) ** 2
        self.patches = nn.Conv2d(3, config.width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(patches, config.width))
        self.trunk = nn.ModuleList(Block(config.width) for _ in range(4))
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        x = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        for block in self.trunk:
            x = block(x)
        return ImageClassifierOutput(logits=self.classifier(x.mean(1)))


register_backbone(
    "my_vit",
    Backbone(
        blocks="trunk",
        projections={"query": "attention.to_q", "key": "attention.to_k", "value": "attention.to_v"},
        linears={"output": "attention.to_out", "fc1": "mlp.0", "fc2": "mlp.2"},
        attention_output="attention.to_out",
        mlp_output="mlp.2",
        norm="norm1",
        prefix_tokens=0,  # no class token: all tokens are patches
        images="fixed",
    ),
)


if __name__ == "__main__":
    model = MyViT(MyConfig(num_labels=3))
    print(check_backbone(model))
    model = get_peft_model(model, NoahConfig())
    model.print_trainable_parameters()
    print(model.get_architecture())
    print(model(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape)
