"""The contract of a prompt module: an elastic, trainable piece added at one site of one block.

What is special about a kind of module stands on its class: placing, slicing, merging, the fast forward and all else ask it
and know no kind by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

#: where a prompt module may sit: on each Linear that ``target_modules`` names, on the leaf whose output is added to the
#: residual after the MLP, on the block's first norm, on both leaves whose outputs are added to the residual: that of
#: attention and that of the MLP, on all Linears and norms of a block that its family names, on the Linear of the keys of an
#: attention that computes by transformers' registry of attention functions, on the last Linears of attention and of the MLP
SITES = ("projection", "mlp_output", "norm", "branch", "affine", "attention", "output")


class PromptModule(nn.Module):
    """An elastic module whose weights for a smaller dim are leading slices of those for a larger one.

    A subclass states its ``name`` (its row in an architecture), its ``site`` (one of `SITES`) and the shapes of its
    weights at a dim; `register_prompt_module` makes it known. Counting, slicing, saving and searching follow from these
    shapes alone. The elastic axis of every weight is its first, so that each slice is contiguous and equals a standalone
    weight bit for bit. One that `is_linear` or `is_affine` can be merged into the leaf at its site, and says so. One that
    `is_tokenwise` says so too, and `fast_forward` leaves out tokens that nobody reads. One that draws random numbers itself, besides in
    dropout layers, overrides `is_random`.

    An instance knows its ``row``, which is the class's ``name`` unless the architecture has several rows of one class.
    Class methods that do nothing here are for modules that hook their block (`attach`, `detach`), that depend on those of
    other blocks (`connect`, `runs_on`), or that share weights with others of their block (`shares_weights`).

    `forward` computes with `active` weights. While shapes are fixed (`NoahModel.fixed_shapes`) these are the stored ones
    with zeros behind the slice, which must change nothing, and what is computed must not depend on ``dim`` but on `live`.

    Args:
        in_features: width of the site's input; no unit.
        out_features: width of the site's output; no unit.
        max_dim: largest dim, the one that is stored.
        block: index of the block that carries the module.
        config: the `NoahConfig`, for the options of the method.
        owner: the module of another projection of the block whose weights serve this one too; None: it has its own.

    Raises:
        ValueError: on `set_dim` outside 0 to ``max_dim``.
    """

    name: ClassVar[str]
    site: ClassVar[str]

    #: what tables and figures call it, with what its dim counts; None: its row
    label: ClassVar[str | None] = None
    #: its colour in figures, ``#rrggbb``; None: one that is free
    colour: ClassVar[str | None] = None
    #: the dims that a named search space gives it; None: those of the space
    dims: ClassVar[tuple[int, ...] | None] = None
    #: its dim in every block where it is used alone
    alone: ClassVar[int] = 8

    #: whether all that it does, but for dropout, is to add `delta_weight` to the weight of the Linear at its site
    is_linear: ClassVar[bool] = False
    #: whether all that it does, but for dropout, is what another weight and bias of the leaf at its site do, which `fold` gives
    is_affine: ClassVar[bool] = False

    #: whether each token's output depends on the same token's input and output of the site alone: no sum over tokens, no
    #: place among them
    is_tokenwise: ClassVar[bool] = False

    #: whether its block reads tokens beside the image's own, as the modules of a `TokenModule` do
    adds_tokens: ClassVar[bool] = False

    #: whether it is there or not: its dim is 1 or 0
    is_switch: ClassVar[bool] = False

    #: while shapes are fixed: what all modules of the adapter chose, in one tensor, and where this one's numbers begin
    chosen: tuple[torch.Tensor, int] | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_dim: int,
        block: int,
        config,
        owner: PromptModule | None = None,
    ) -> None:
        super().__init__()
        # a tuple hides the other module from torch: it must not be saved, counted or moved twice
        self._owner = () if owner is None else (owner,)
        self.row = self.name
        self.in_features, self.out_features, self.max_dim, self.block = in_features, out_features, max_dim, block
        self._configure(config)
        stored = self.shapes(max_dim)
        for name, shape in stored.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self._names = tuple(stored)
        self.set_dim(max_dim)
        self.reset_parameters(config)

    @abstractmethod
    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """Shape of each weight at ``dim`` >= 1, with the elastic axis first."""

    @abstractmethod
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The site's new output from its input ``x`` (B, T, in_features) and its output ``y`` (B, T, out_features)."""

    @abstractmethod
    def reset_parameters(self, config) -> None:
        """Draw the starting weights."""

    def _configure(self, config) -> None:
        """Read the options of the method; before any weight exists."""

    # ------------------------------------------------------------------ how it hangs together with the rest of a model

    @classmethod
    def check_stored(cls, dim: int) -> None:
        """Refuse a dim that no backbone should be given; more than 1 of a module that is there or not.

        Raises:
            ValueError: says which are allowed.
        """
        if cls.is_switch and dim > 1:
            raise ValueError(f"{cls.name} is there or not: its dim is 1 or 0, not {dim}.")

    @classmethod
    def runs_on(cls, config) -> bool:
        """Whether what it adds to a block runs on into later ones that have none of their own: these carry dim 0."""
        return False

    @classmethod
    def shares_weights(cls, config) -> bool:
        """Whether the module of a block's first projection is the ``owner`` of weights that serve the others too."""
        return False

    @classmethod
    def attach(cls, block: nn.Module, backbone) -> None:
        """Hook a block that carries one, as its `Backbone` describes it; called again for each adapter."""

    @classmethod
    def detach(cls, block: nn.Module) -> None:
        """Take away what `attach` has left."""

    @classmethod
    def owns_hook(cls, hook: object) -> bool:
        """Whether a hook is one of those that `attach` places."""
        return False

    @classmethod
    def connect(cls, modules: Sequence[PromptModule], num_blocks: int, config) -> None:
        """Tell the modules of an adapter's row of each other, whenever their dims have been set."""

    @classmethod
    def fix_shapes(cls, modules: Sequence[PromptModule], num_blocks: int, config) -> None:
        """Prepare the modules of an adapter's row for shapes that stay fixed.

        Raises:
            ValueError: if they cannot.
        """

    @classmethod
    def check_batch(cls, one: Sequence[PromptModule], other: Sequence[PromptModule], names: tuple[str, str]) -> None:
        """Refuse that samples of one batch go through the modules of different adapters, called ``names``.

        Raises:
            ValueError: says what differs.
        """

    @property
    def owner(self) -> PromptModule | None:
        """The module whose weights serve this one too."""
        return self._owner[0] if self._owner else None

    @property
    def passing(self) -> int:
        """Number of tokens that it adds to those of its block; a module with any is a `TokenModule`."""
        return 0

    # ------------------------------------------------------------------ the elastic axis

    def set_dim(self, dim: int) -> None:
        """Make ``dim`` the active dim; 0 switches the module off."""
        if not 0 <= dim <= self.max_dim:
            raise ValueError(
                f"{self.row} in block {self.block} cannot take dim {dim}: it stores dims 0 to {self.max_dim}. "
                "Choose a smaller dim, or build the adapter with a larger architecture."
            )
        self.dim = dim
        self._sizes = {name: shape[0] for name, shape in self.shapes(dim).items()} if dim else {}

    @property
    def live(self) -> int:
        """The dim that is computed with: the active one, or while shapes are fixed the stored one."""
        return self.dim if self.chosen is None else self.max_dim

    def choice(self) -> list[int]:
        """What `chosen` holds of this module: the size of each weight's active slice, 0 where it is switched off."""
        return [self._sizes.get(name, 0) for name in self._names]

    def chosen_size(self, index: int) -> torch.Tensor:
        """While shapes are fixed, number ``index`` of `choice`, a scalar on the device."""
        numbers, first = self.chosen
        return numbers[first + index]

    def active(self, name: str) -> torch.Tensor:
        """The leading slice of weight ``name`` that the active dim uses; while shapes are fixed, all of it, with zeros
        behind the slice."""
        weight = getattr(self, name)
        if self.chosen is not None:
            rows = torch.arange(len(weight), device=weight.device).view(-1, *[1] * (weight.dim() - 1))
            return weight.where(rows < self.chosen_size(self._names.index(name)), 0.0)
        size = self._sizes[name]
        return weight if size == weight.shape[0] else weight[:size]

    def aligned(self, name: str) -> torch.Tensor:
        """The same as `active` along a bottleneck; while shapes are fixed, with further zeros up to a multiple of 8 rows,
        which a GPU's matrix kernels need to be fast."""
        weight = self.active(name)
        extra = 0 if self.chosen is None else -len(weight) % 8
        return torch.cat([weight, weight.new_zeros(extra, *weight.shape[1:])]) if extra else weight

    @staticmethod
    def cast(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``x`` in the dtype of ``weight``; under autocast as it is, since that casts both for each product."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)

    def count(self, dim: int) -> int:
        """Number of parameters at ``dim``: the sum over weights of the product of their shapes."""
        return sum(prod(shape) for shape in self.shapes(dim).values()) if dim else 0

    def sliced_state(self, dim: int) -> dict[str, torch.Tensor]:
        """Copies of the weights that a module of size ``dim`` holds."""
        shapes = self.shapes(dim) if dim else {}
        return {name: getattr(self, name).detach()[: shape[0]].clone() for name, shape in shapes.items()}

    @property
    def is_random(self) -> bool:
        """Whether the module draws numbers of its own for each sample now, so that no two get the same output.

        Dropout layers are found. A module that draws in another way says so here.
        """
        drops = (layer for layer in self.modules() if isinstance(layer, _DropoutNd))
        return bool(self.live) and any(layer.training and layer.p > 0.0 for layer in drops)

    def delta_weight(self) -> torch.Tensor:
        """What it adds to a frozen Linear's weight, shape (out, in), where it `is_linear`."""
        raise NotImplementedError(f"{self.name} is not linear in the input of its site")

    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weights of low rank r whose product ``up^T down`` is `delta_weight`: ``down`` (r, in) and ``up`` (r, out); None: it
        has none, or is not `is_linear`."""
        return None

    @classmethod
    def merges(cls) -> bool:
        """Whether what it does can be put into the weight and bias of the leaf at its site."""
        return cls.is_linear or cls.is_affine

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The leaf's weight, (out, in) of a Linear or (out,) of a norm, and bias (out,) with what the module does to them.

        One that is not `is_linear` gets a bias in any case, and overrides this.
        """
        return weight + self.delta_weight().to(weight.device), bias

    def as_peft_lora(self, dim: int) -> dict[str, torch.Tensor] | None:
        """Copies of the weights at ``dim`` under the names of PEFT's LoRA; None where it cannot express them."""
        return None

    def versions(self) -> tuple[float, ...]:
        """Numbers that change when what `delta_weight` depends on is written to or replaced."""
        return tuple(x for weight in self.parameters() for x in (weight.data_ptr(), weight._version))

    def extra_repr(self) -> str:
        """Shown in the model's printout."""
        return f"block={self.block}, dim={self.dim}, max_dim={self.max_dim}"


class _KeepInGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.weights = weights
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        zeros = (
            torch.zeros_like(weight) if needed else None
            for weight, needed in zip(ctx.weights, ctx.needs_input_grad[1:], strict=True)
        )
        return grad, *zeros


def keep_in_graph(y: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """``y`` itself, whose backward pass gives ``weights`` gradients of zero.

    DistributedDataParallel then finds no unused parameter among the modules that the active subnet leaves out. A sum with
    zeros would do the same, but costs a pass over ``y``.
    """
    return _KeepInGraph.apply(y, *weights) if torch.is_grad_enabled() else y


def init_normal(weight: torch.Tensor, init_weights: bool) -> None:
    """Truncated normal, std 0.02 (the released code's one pass); std 0.1 where a test wants a visible start."""
    nn.init.trunc_normal_(weight, std=0.02 if init_weights else 0.1)
