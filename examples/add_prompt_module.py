"""Add a prompt module of your own: a bottleneck beside the query and key projections, searched together with LoRA and VPT.

    python examples/add_prompt_module.py

The class says at which site it sits, the shapes of its weights at a dim, and what it computes. Everything else follows:
placing, counting, slicing, searching, saving, loading.
"""

import copy
import random
import tempfile

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from peft_noah import NoahConfig, PromptModule, SearchSpace, register_prompt_module


@register_prompt_module
class ParallelAdapter(PromptModule):
    """Bottleneck beside a projection, with elastic width a: ``y' = y + relu(x W_down^T) W_up`` (arXiv 2110.04366)."""

    name = "parallel"
    site = "projection"
    label = "Parallel (width)"  # in tables and figures
    is_tokenwise = True  # each token's output depends on that token alone, so that fast_forward may leave some out

    def shapes(self, dim):
        return {"down": (dim, self.in_features), "up": (dim, self.out_features)}  # the elastic axis comes first

    def reset_parameters(self, config):
        nn.init.kaiming_uniform_(self.down)
        nn.init.zeros_(self.up)  # starts without effect

    def forward(self, x, y):
        hidden = F.relu(F.linear(self.cast(x, self.down), self.active("down")))  # (B, T, a)
        return y + (hidden @ self.active("up")).to(y.dtype)


if __name__ == "__main__":
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    vit = ViTForImageClassification(config)
    space = SearchSpace(num_blocks=4, dims={"lora": (1, 4), "vpt": (1, 4), "parallel": (2, 8)})
    model = get_peft_model(copy.deepcopy(vit), NoahConfig(search_space=space)).eval()
    model.print_trainable_parameters()

    architecture = space.sample(random.Random(0))
    model.set_architecture(architecture)
    print(architecture, f"{model.count_parameters():,} prompt parameters", sep="\n")

    pixels = torch.randn(2, 3, 32, 32)
    expected = model(pixel_values=pixels).logits
    with tempfile.TemporaryDirectory() as folder:
        model.extract().save_pretrained(folder)
        loaded = PeftModel.from_pretrained(vit, folder).eval()
    print("loaded again, with the same logits:", torch.equal(loaded(pixel_values=pixels).logits, expected))
