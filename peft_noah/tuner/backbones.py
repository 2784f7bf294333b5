"""Where each model family keeps its blocks, and the sites in them that prompt modules attach to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn


@dataclass(frozen=True)
class Backbone:
    """The layout of a family of Vision Transformers.

    Args:
        blocks: dotted name, seen from anywhere above, of the ``ModuleList`` of blocks.
        projections: LoRA's sites by name (``query``, ``key``, ``value``), each the path of a Linear inside a block.
        mlp_output: path of the leaf whose output is added to the residual after the MLP.
        attention_output: path of the leaf whose output is added to the residual after attention.
        norm: name of the first norm of a block, a direct child of it; the leaf that holds VPT's tokens.
        embeddings: name of what makes the first block's input of the pixels, seen from anywhere above.
        head: name of the classifier on the model.
        prefix_tokens: number of class tokens before the patches; no unit.
        norm_after: name of the second norm of a block, before the MLP. Only where it is given does `fast_forward` know the
            block: ``x + drop(scale(attention(norm(x))))``, then ``x + drop(scale(mlp(norm_after(x))))``.
        attention: name of a block's attention, the parent of the projections and of ``o_proj``.
        mlp: name of a block's MLP.
        drop: name of what drops out a branch before it is added, called twice.
        head_tokens: number of leading tokens that the classifier reads; None: all.
    """

    blocks: str
    mlp_output: str
    norm: str
    projections: Mapping[str, str] = field(
        default_factory=lambda: {
            "query": "attention.q_proj",
            "key": "attention.k_proj",
            "value": "attention.v_proj",
        }
    )
    attention_output: str = "attention.o_proj"
    embeddings: str = "embeddings"
    head: str = "classifier"
    prefix_tokens: int = 1
    norm_after: str | None = None
    attention: str = "attention"
    mlp: str = "mlp"
    drop: str = "dropout"
    head_tokens: int | None = None

    def block_names(self, model: nn.Module) -> list[str]:
        """Names of the blocks in ``model``, in order."""
        pattern = re.compile(rf"(?:.*\.)?{re.escape(self.blocks)}\.\d+")
        return [name for name, _ in model.named_modules() if pattern.fullmatch(name)]

    def embeddings_name(self, model: nn.Module) -> str | None:
        """Name of the embeddings in ``model``, if they are there."""
        names = (name for name, _ in model.named_modules())
        return next((name for name in names if f".{name}".endswith(f".{self.embeddings}")), None)


_VIT = Backbone(
    blocks="layers", mlp_output="mlp.fc2", norm="layernorm_before", norm_after="layernorm_after", head_tokens=1
)
_DINOV2 = Backbone(
    blocks="encoder.layer",
    mlp_output="layer_scale2",
    norm="norm1",
    attention_output="layer_scale1",
    norm_after="norm2",
    drop="drop_path",
)

BACKBONES: dict[str, Backbone] = {
    "vit": _VIT,
    "vit_msn": _VIT,
    "deit": replace(_VIT, prefix_tokens=2),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
}
_BUILT_IN = dict(BACKBONES)


def is_built_in(model_type: str | None) -> bool:
    """Whether a family's layout is the package's own, so that its tests vouch for it."""
    return model_type in _BUILT_IN and BACKBONES.get(model_type) is _BUILT_IN[model_type]


def register_backbone(model_type: str, backbone: Backbone) -> None:
    """Make a family known by its transformers ``config.model_type``.

    Raises:
        ValueError: if the family is known already with another layout.
    """
    if BACKBONES.get(model_type, backbone) != backbone:
        raise ValueError(
            f"model_type {model_type!r} is registered already, as {BACKBONES[model_type]}. Register each family once."
        )
    BACKBONES[model_type] = backbone


def find_backbone(model_type: str | None) -> Backbone:
    """The layout of a family.

    Raises:
        ValueError: for a family that nobody has described.
    """
    if model_type not in BACKBONES:
        raise ValueError(
            f"no sites known for model_type {model_type!r} (known: {', '.join(sorted(BACKBONES))}). Describe its blocks "
            f"with register_backbone({model_type!r}, Backbone(...)); examples/add_backbone.py shows how."
        )
    return BACKBONES[model_type]
