"""The kinds of NOAH adapter that every test of PEFT's common behaviour runs on: the full mix, each module alone, an MLP."""

import copy

import torch
from conftest import make_model
from peft import get_peft_model
from torch import nn

from peft_noah import Architecture, NoahConfig

ROWS = {
    "mix": {"lora": 4, "adapter": 3, "vpt": 2},
    "lora": {"lora": 4},
    "adapter": {"adapter": 3},
    "vpt": {"vpt": 2},
}
VARIANTS = [*ROWS, "mix-released", "lora-released", "mlp"]
LORA_ONLY = ["lora", "lora-released", "mlp"]


def uniform(**dims):
    """The same dims in each block of the tiny ViT."""
    return Architecture.uniform(4, **dims)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin0, self.act, self.lin1, self.head = nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.lin1(self.act(self.lin0(x))))


def make_base(variant, seed=0):
    if variant != "mlp":
        return make_model(seed=seed)
    torch.manual_seed(seed)
    return MLP().eval()


def make_config(variant, **options):
    options.setdefault("init_weights", False)
    if variant == "mlp":
        return NoahConfig(**{"target_modules": ["lin0", "lin1"], "modules_to_save": ["head"], **options})
    kind, _, recipe = variant.partition("-")
    options.setdefault("architecture", Architecture.uniform(4, **ROWS[kind]))
    return NoahConfig(recipe=recipe or "paper", **options)


def build(variant, seed=0, **options):
    """A base model and an adapted copy of it, in evaluation mode."""
    base = make_base(variant, seed)
    return base, get_peft_model(copy.deepcopy(base), make_config(variant, **options)).eval()


def batch(variant, size=3):
    shape = (size, 10) if variant == "mlp" else (size, 3, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def forward(model, x, **kwargs):
    output = model(x, **kwargs)
    return getattr(output, "logits", output)


@torch.no_grad()
def outputs(model, variant, **kwargs):
    return forward(model, batch(variant), **kwargs)


def fit(model, variant, steps=3):
    """A few steps of training; back to evaluation mode."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        forward(model, batch(variant)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
