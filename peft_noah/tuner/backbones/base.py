"""What is said of a model family: where it keeps its blocks, and the sites in them that prompt modules attach to."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Backbone:
    """The layout of a family of Vision Transformers.

    Args:
        blocks: dotted name of the ``ModuleList`` of blocks in the family's base model (a ``ViTModel``, say), or in the
            whole model where the family has none; ``*`` stands for any number, as in ``stages.*.blocks``.
        projections: the Linears that read the first norm's output, by name (``query``, ``key``, ``value``), each with
            its path inside a block. The first two are LoRA's where nobody says otherwise.
        linears: the other Linears of a block by name (``output``, ``fc1``, ``fc2``), each with its path, or with those of
            which a model of the family has one. A name that is left out is a site that the family does not have.
        mlp_output: path of the leaf whose output is added to the residual after the MLP.
        attention_output: path of the leaf whose output is added to the residual after attention.
        norm: name of the first norm of a block, a direct child of it; the leaf that holds VPT's tokens.
        reads: what the family reads, ``"images"`` or ``"texts"``.
        head: name of the Linear that makes the logits, or names of all that the family's classes have. Of a name and one
            inside it (``classifier``, ``classifier.out_proj``) the inner one counts.
        before_head: names of what stands between the blocks and the classifier and trains with it, where a model has it.
        prefix_tokens: number of class tokens before the patches; no unit.
        norm_after: name of the second norm of a block, before the MLP; a site of SSF. Only where it is given does `fast_forward` know the
            block: ``x + drop(scale(attention(norm(x))))``, then ``x + drop(scale(mlp(norm_after(x))))``.
        attention: name of a block's attention, which knows its head's width, scale and dropout.
        mlp: name of a block's MLP, or names of its parts, one after the other.
        drop: name of what drops out a branch before it is added, called twice, or names of several, one after the other.
        scales: names of the block's own factors on its two branches, applied before ``drop``; they may be numbers.
        head_tokens: number of leading tokens that the classifiers read; None: all.
        position_bias: path of what computes a bias of each pair of tokens (1, heads, T, T) inside a block, where it has it.
        images: how its models read images of another size than they were made for: ``"interpolated"``, with
            ``interpolate_pos_encoding=True``; ``"any"``, as they are; ``"fixed"``, not at all; ``"patches"``, as rows of
            patches with their ``spatial_shapes``.
        tokens_first: whether positions are those of the last tokens, so that others must stand before them.
        rotary: whether a call's ``position_embeddings`` rotate queries and keys of the last tokens, by the function
            ``apply_rotary_pos_emb`` of the family's module.
        no_tokens: why a block can read no tokens beside the image's own, as the rest of a sentence; None: it can.
        not_fast: why `fast_forward` does not know the block, as the rest of a sentence.
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
    linears: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=lambda: {"output": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    )
    attention_output: str = "attention.o_proj"
    reads: str = "images"
    head: str | tuple[str, ...] = "classifier"
    before_head: tuple[str, ...] = ()
    prefix_tokens: int = 1
    norm_after: str | None = None
    attention: str = "attention"
    mlp: str | tuple[str, ...] = "mlp"
    drop: str | tuple[str, ...] = "dropout"
    scales: tuple[str, str] | None = None
    head_tokens: int | None = None
    position_bias: str | None = None
    images: str = "interpolated"
    tokens_first: bool = False
    rotary: bool = False
    no_tokens: str | None = None
    not_fast: str | None = None

    @property
    def drops(self) -> tuple[str, ...]:
        """Names of all that drops out a branch."""
        return (self.drop,) if isinstance(self.drop, str) else self.drop

    def site_paths(self, block: nn.Module) -> dict[str, tuple[str, ...]]:
        """Paths inside ``block`` of the leaves that it has of each kind of site but projections, of which a user names some."""
        norms = (self.norm,) if self.norm_after is None else (self.norm, self.norm_after)
        linears = self.linear_sites(block)
        sites = {
            "mlp_output": (self.mlp_output,),
            "norm": (self.norm,),
            "branch": (self.attention_output, self.mlp_output),
            "affine": (*linears.values(), *norms),
            "attention": self._keys(block),
            "output": tuple(linears[site] for site in ("output", "fc2") if site in linears),
        }
        return {site: tuple(path for path in paths if has_module(block, path)) for site, paths in sites.items()}

    def _keys(self, block: nn.Module) -> tuple[str, ...]:
        """Path inside ``block`` of the Linear of the keys; none where attention is not computed by transformers' registry."""
        path = self.linear_sites(block).get("key")
        if path is None or "." not in path:
            return ()
        attention = block.get_submodule(path.rpartition(".")[0])
        known = hasattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS")
        return (path,) if known and hasattr(attention, "config") else ()

    def linear_sites(self, block: nn.Module) -> dict[str, str]:
        """Path inside ``block`` of each Linear that the family names and the block has, by the name of its site."""
        found = {}
        for site, paths in {**self.projections, **self.linears}.items():
            for path in (paths,) if isinstance(paths, str) else paths:
                if has_module(block, path):
                    found[site] = path
        return found

    def base_name(self, model: nn.Module) -> str | None:
        """Name in ``model`` of the family's base model, which holds the blocks; empty: ``model`` itself; None: none.

        Raises:
            ValueError: if there are several.
        """
        prefix = getattr(model, "base_model_prefix", "")
        inner = [name for name, module in model.named_modules() if name and isinstance(module, PreTrainedModel)]
        found = [name for name in inner if self._blocks_below(model, name)]
        if prefix in found:
            return prefix
        if len(found) > 1:
            raise ValueError(
                f"this {type(model).__name__} holds several models with blocks: {', '.join(found)}. "
                f"{how_to_wrap(next((name for name in found if 'vision' in name), found[0]))}"
            )
        return found[0] if found else "" if self._blocks_below(model, "") else None

    def _blocks_below(self, model: nn.Module, base: str) -> list[str]:
        path = re.escape(f"{base}.{self.blocks}".lstrip(".")).replace(r"\*", r"\d+")
        return [name for name, _ in model.named_modules() if re.fullmatch(rf"{path}\.\d+", name)]

    def block_names(self, model: nn.Module) -> list[str]:
        """Names of the blocks in ``model``, in order; none where it has no blocks of this family."""
        base = self.base_name(model)
        return [] if base is None else self._blocks_below(model, base)

    def widths(self, model: nn.Module) -> tuple[int, ...]:
        """Width of the stream in each block, in order: one number in most models, growing by stages in hierarchical ones."""
        norms = [model.get_submodule(f"{name}.{self.norm}") for name in self.block_names(model)]
        return tuple(width for width in map(width_of, norms) if width is not None)

    def head_names(self, model: nn.Module) -> list[str]:
        """Names of the classifiers that ``model`` has; they may be empty, as with ``num_labels=0``."""
        names = (self.head,) if isinstance(self.head, str) else self.head
        found = [name for name in names if has_module(model, name)]
        return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]

    def trained_names(self, model: nn.Module) -> list[str]:
        """Names of all that trains with an adapter: what stands before the classifiers, and these themselves."""
        return [*(name for name in self.before_head if has_module(model, name)), *self.head_names(model)]


def width_of(leaf: nn.Module) -> int | None:
    """Width of what a leaf gives; None for one without weights, which passes on what it gets."""
    while isinstance(leaf, BaseTunerLayer):
        leaf = leaf.get_base_layer()
    if hasattr(leaf, "out_features"):
        return leaf.out_features
    weight = next(leaf.parameters(), None)
    return None if weight is None else weight.shape[-1]


def has_module(model: nn.Module, name: str) -> bool:
    """Whether ``model`` has a module of this dotted name."""
    module: nn.Module | None = model
    for part in name.split("."):
        module = getattr(module, part, None)
    return isinstance(module, nn.Module)


def how_to_wrap(name: str) -> str:
    return f"Wrap the inner model: `model.{name} = get_peft_model(model.{name}, NoahConfig(...))`."
