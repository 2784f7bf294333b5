"""Whether the fast forward computes what the plain one does, found out by calling both.

The package's own tests answer that for the families and modules that are built in. For all others the first call of each
kind is answered here, before its results are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from peft_noah.fast.block import FastCall, plain_class
from peft_noah.tuner.backbones import Backbone, is_built_in
from peft_noah.tuner.layer import NoahLayer
from peft_noah.tuner.prompts import PromptModule
from peft_noah.tuner.prompts.tokens import FAST_CALL

#: packages whose modules work token by token wherever they stand in a block, or are turned away for other reasons
_KNOWN_PACKAGES = ("peft_noah.", "peft.", "transformers.activations", "torch.nn.modules.activation", "bitsandbytes.")
_KNOWN_TYPES = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ModuleDict, nn.ModuleList, nn.ParameterDict)

#: what each layer that drops multiplies by during a comparison, so that one that is left out shows itself
_KEPT = 0.75

#: largest difference of two outputs that have the same formula, as a share of the largest output, by their precision
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}


def unknown_parts(root: PreTrainedModel, blocks: list[nn.Module]) -> list[str]:
    """What in a model the package's own tests know nothing of: its family, modules in its blocks; empty for most models."""
    found = [] if is_built_in(root.config.model_type) else [f"model_type {root.config.model_type!r}"]
    for block in blocks:
        family = plain_class(type(block)).__module__.rpartition(".")[0] + "."
        known = (*_KNOWN_PACKAGES, family)
        found.extend(type(module).__name__ for module in block.modules() if not _is_known(module, known))
    return list(dict.fromkeys(found))


def _is_known(module: nn.Module, packages: tuple[str, ...]) -> bool:
    cls = plain_class(type(module))
    return "forward" not in module.__dict__ and (cls in _KNOWN_TYPES or f"{cls.__module__}.".startswith(packages))


class Comparison:
    """Compares the first call of each kind with a plain one.

    A kind is what decides how a block is computed: which modules are active in it, with which dims where shapes are fixed,
    whether tokens run on, whether it is
    the last one, whether the model trains, and whether there are gradients. For the comparison nothing is random: layers
    that drop multiply by one number instead, and prompt modules with noise are in evaluation mode. The weights of modules
    that are not built in are moved a little, since those that they start with may have no effect. Afterwards all is as
    before.

    Args:
        root: the transformers model.
        blocks: its blocks, in order.
        backbone: its family.

    Attributes:
        reason: what differed, in any call so far; None: nothing.
    """

    def __init__(self, root: PreTrainedModel, blocks: list[nn.Module], backbone: Backbone) -> None:
        self.reason: str | None = None
        self.root, self._blocks, self._backbone = root, blocks, backbone
        self._equal: set[tuple] = set()

    def judge(self, args: tuple, kwargs: dict[str, Any], call: FastCall) -> str | None:
        """Why this call of the model cannot be fast; None: it can.

        Args:
            args: the model's positional arguments.
            kwargs: its keyword arguments.
            call: what the fast blocks are told.
        """
        if self.reason is None and torch.compiler.is_compiling():
            unseen = "a compiler sees the model before its fast forward was compared with the plain one"
            return None if self._equal else unseen
        if self.reason is None:
            kinds = set(self._kinds())
            if not kinds <= self._equal:
                self.reason = self._difference(args, kwargs, call)
                self._equal |= kinds
        return self.reason

    def _kinds(self) -> Iterator[tuple]:
        common = self.root.training, torch.is_grad_enabled()
        for block in self._blocks:
            layers = [layer for layer in block.modules() if isinstance(layer, NoahLayer)]
            active = [module for layer in layers for module in layer.active_modules()]
            state = tuple((type(m), m.chosen and m.dim, *map(bool, getattr(m, "flow", ()))) for m in active)
            yield *common, state, block is self._blocks[-1]

    def _difference(self, args: tuple, kwargs: dict[str, Any], call: FastCall) -> str | None:
        with self._steady():
            torch.manual_seed(0)  # for what a model draws besides dropout, as DINOv3 moves its positions
            with _sliced(self.root):
                plain = self._outputs(args, kwargs)
            torch.manual_seed(0)
            try:
                fast = self._outputs(args, {**kwargs, FAST_CALL: call})
            except Exception as error:  # whatever a module makes of tokens that it does not expect
                return f"it stops with {type(error).__name__}: {str(error)[:200]}"
        if len(plain) != len(fast) or any(a.shape != b.shape for a, b in zip(plain, fast, strict=True)):
            return "its outputs have other shapes than those of the plain one"
        limit = max(_ROUNDING.get(dtype, 0.0) for dtype in self._dtypes(plain))
        far = max((_distance(a, b) for a, b in zip(plain, fast, strict=True)), default=0.0)
        return None if far <= limit else f"its outputs differ from those of the plain one, by {far:.2g} of the largest"

    def _outputs(self, args: tuple, kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The model's outputs, and what its classifiers read, whose own weights may be zero."""
        seen: list[torch.Tensor] = []
        heads = map(self.root.get_submodule, self._backbone.head_names(self.root))
        handles = [head.register_forward_pre_hook(lambda _, inputs: seen.extend(_tensors(inputs))) for head in heads]
        try:
            return [*_tensors(self.root.forward(*args, **kwargs)), *seen]
        finally:
            for handle in handles:
                handle.remove()

    def _dtypes(self, outputs: list[torch.Tensor]) -> set[torch.dtype]:
        kind = outputs[0].device.type if outputs else "cpu"
        autocast = {torch.get_autocast_dtype(kind)} if torch.is_autocast_enabled(kind) else set()
        return {tensor.dtype for tensor in (*outputs, *self.root.parameters())} | autocast

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """The model without chance, with modules that have an effect."""
        device = next(self.root.parameters()).device
        buffers = [(buffer, buffer.clone()) for buffer in self.root.buffers()]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            for module in list(self.root.modules()):
                if self.root.training:
                    _hold_still(module, stack)
                if isinstance(module, PromptModule) and not type(module).__module__.startswith("peft_noah."):
                    _move_weights(module, stack)
            for block in self._blocks if self.root.training else ():
                _set_for_now(block.get_submodule(self._backbone.attention), "training", False, stack)
            yield
        for buffer, before in buffers:
            if not torch.equal(buffer, before):  # of a norm over batches, for example
                buffer.data.copy_(before)


def _hold_still(module: nn.Module, stack: ExitStack) -> None:
    """Let a layer that drops at random do the same to all values instead, and a module with noise of its own do without."""
    if isinstance(module, NoahLayer):
        _set_for_now(module, "training", False, stack)  # its stochastic depth; what is inside it keeps its own mode
    if isinstance(module, PromptModule) and module.is_random:
        for part in module.modules():
            _set_for_now(part, "training", False, stack)
    drops = isinstance(module, _DropoutNd) or type(module).__name__.endswith("DropPath")
    rate = getattr(module, "p", getattr(module, "drop_prob", None)) if drops else None
    if rate and module.training:
        _set_for_now(module, "forward", lambda x: x * _KEPT, stack)


def _move_weights(module: PromptModule, stack: ExitStack) -> None:
    """Other weights in place of a module's own, which stay untouched."""
    for name, weight in module.named_parameters(recurse=False):
        moved = weight.detach() + 0.1 * torch.randn_like(weight)
        stack.callback(module._parameters.__setitem__, name, weight)
        module._parameters[name] = nn.Parameter(moved, requires_grad=weight.requires_grad)


def _set_for_now(module: nn.Module, name: str, value: Any, stack: ExitStack) -> None:
    had, before = name in module.__dict__, module.__dict__.get(name)
    module.__dict__[name] = value
    stack.callback(module.__dict__.__setitem__, name, before) if had else stack.callback(module.__dict__.pop, name)


@contextmanager
def _sliced(root: nn.Module) -> Iterator[None]:
    """Where shapes are fixed, which the plain forward cannot do with tokens: slices again."""
    chosen = [(module, module.chosen) for module in root.modules() if isinstance(module, PromptModule)]
    try:
        for module, _ in chosen:
            module.chosen = None
        yield
    finally:
        for module, choice in chosen:
            module.chosen = choice


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output.detach()]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _distance(plain: torch.Tensor, fast: torch.Tensor) -> float:
    if torch.equal(plain, fast) or not plain.numel():
        return 0.0
    scale = plain.abs().max().clamp_min(torch.finfo(plain.dtype).tiny)
    far = ((fast - plain).abs().max() / scale).item()
    both_broken = not (
        plain.isfinite().all() or fast.isfinite().all()
    )  # a loss that overflows is none of our business
    return 0.0 if both_broken else far if far == far else float("inf")
