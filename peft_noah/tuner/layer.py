"""The tuner layer: a leaf of the model and the prompt modules that act on its output."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from peft_noah.tuner.placement import Placement
from peft_noah.tuner.prompts import PROMPT_MODULES, PromptModule, find_prompt_module, in_order
from peft_noah.tuner.prompts.base import keep_in_graph

#: weight and bias of a leaf
Folded = tuple[torch.Tensor, torch.Tensor | None]


def drop_path(y: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Stochastic depth: zero a whole sample's branch ``y`` (B, ...) with probability ``rate``, rescale the others.

    Source: arXiv 1603.09382; the released code's training uses it with a rate that grows linearly over the blocks.
    """
    if not training or rate == 0.0:
        return y
    keep = torch.rand((y.shape[0],) + (1,) * (y.dim() - 1), device=y.device) >= rate
    return y * keep.to(y.dtype) / (1.0 - rate)


class NoahLayer(nn.Module, BaseTunerLayer):
    """A wrapped leaf: ``y = base(x)``, then each prompt module ``y = module(x, y)`` of each active adapter.

    The modules of a row stand in ``noah_<row>``, by adapter; a layer has that only for rows that it carries.

    Args:
        base_layer: the leaf, frozen: a site of prompt modules, or a branch's end with stochastic depth alone.
        in_features, out_features: widths of the leaf, which every PEFT layer tells; a norm's are the stream's.
    """

    other_param_names = ("drop_path_rates", "before_merge")

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_features, out_features
        self.adapter_layer_names: tuple[str, ...] = ()
        self.drop_path_rates: dict[str, float] = {}
        #: weight and bias of the leaf as they were before an adapter was merged that changed them by more than a sum
        self.before_merge: dict[str, Folded] = {}
        self.batch_adapters: tuple[str, ...] | None = None  # one per sample, set by mixed_batch while a batch runs
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    def update_layer(
        self, adapter_name: str, placement: Placement, config, owners: Mapping[str, PromptModule]
    ) -> None:
        """Create the prompt modules of an adapter at this leaf; ``owners`` lend weights, by row."""
        for row, dim in placement.dims.items():
            lent = {"owner": owners[row]} if row in owners else {}
            widths = placement.in_features, placement.out_features
            module = find_prompt_module(row)(*widths, dim, placement.block, config, **lent)
            module.row = row
            self._container(row)[adapter_name] = module
        if placement.drop_path:
            self.drop_path_rates[adapter_name] = placement.drop_path
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _container(self, row: str) -> nn.ModuleDict:
        """What holds the modules of a row, by adapter."""
        if f"noah_{row}" not in self.adapter_layer_names:
            setattr(self, f"noah_{row}", nn.ModuleDict())
            rows = in_order([*(name.removeprefix("noah_") for name in self.adapter_layer_names), row])
            self.adapter_layer_names = tuple(f"noah_{row}" for row in rows)
        return getattr(self, f"noah_{row}")

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter's modules, and the containers that are empty then."""
        super().delete_adapter(adapter_name)
        for name in [name for name in self.adapter_layer_names if not getattr(self, name)]:
            delattr(self, name)
            self.adapter_layer_names = tuple(other for other in self.adapter_layer_names if other != name)

    def prompt_modules(self, adapter_name: str) -> list[PromptModule]:
        """The prompt modules of an adapter, in the order in which they act."""
        containers = (getattr(self, name) for name in self.adapter_layer_names)
        return [container[adapter_name] for container in containers if adapter_name in container]

    def active_modules(self) -> list[PromptModule]:
        """The prompt modules that act now."""
        if self.disable_adapters:
            return []
        return [module for name in self.active_adapters for module in self.prompt_modules(name) if module.live]

    def token_modules(self) -> list[PromptModule]:
        """The modules whose tokens the block reads now, in order of activation; in a mixed batch, one that stands for
        all."""
        if self.disable_adapters:
            return []
        names = dict.fromkeys(self.active_adapters if self.batch_adapters is None else self.batch_adapters)
        modules = [module for name in names for module in self.prompt_modules(name)]
        with_tokens = [module for module in modules if module.passing]
        return with_tokens if self.batch_adapters is None else with_tokens[:1]

    def tokens_by_sample(self, size: int) -> list[PromptModule] | None:
        """In a mixed batch of ``size`` samples, the module with each one's tokens."""
        if self.batch_adapters is None:
            return None
        self._check_batch(size)
        modules = {name: self.prompt_modules(name) for name in self.batch_adapters}
        return [next(module for module in modules[name] if module.passing) for name in self.batch_adapters]

    def _check_batch(self, size: int) -> None:
        if size != len(self.batch_adapters):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(self.batch_adapters)} and {size} respectively."
            )

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """``x`` (B, T, in_features) to (B, T, out_features)."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        return self.adapt(x, self.base_layer(x, *args, **kwargs))

    def adapt(self, x: torch.Tensor, y: torch.Tensor, done: Container[PromptModule] = ()) -> torch.Tensor:
        """What the active adapters make of the leaf's own output ``y`` (B, T, out_features) for input ``x``; modules that are
        ``done`` have acted on it."""
        if self.disable_adapters:
            return y
        if self.batch_adapters is not None:
            return self._forward_mixed(x, y)
        idle = []
        for name in self.active_adapters:
            if name in self.merged_adapters:
                continue
            y = drop_path(y, self.drop_path_rates.get(name, 0.0), self.training)
            for module in self.prompt_modules(name):
                if module.live:
                    y = y if module in done else module(x, y)
                else:
                    idle.extend(module.parameters())
        return keep_in_graph(y, idle) if idle and self.training else y

    def _forward_mixed(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self._check_batch(len(x))
        y = y.clone()
        for name in dict.fromkeys(self.batch_adapters):
            rows = [row for row, other in enumerate(self.batch_adapters) if other == name]
            for module in self.prompt_modules(name):
                if module.dim:
                    y[rows] = module(x[rows], y[rows])
        return y

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.convert_to_lora` can express an adapter at this leaf: a Linear with modules that are linear alone."""
        leaf = self.get_base_layer()
        is_linear = hasattr(leaf, "in_features") and hasattr(leaf, "out_features")
        return is_linear and all(module.is_linear for module in self.prompt_modules(adapter_name) if module.dim)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """The update that merging adds to the base weight, (out, in).

        Raises:
            ValueError: where an active module is not linear in the weight.
        """
        weight = self.get_base_layer().weight
        updates = []
        for module in self.prompt_modules(adapter_name):
            if module.dim == 0:
                continue
            if not module.is_linear:
                raise ValueError(
                    f"{module.row} does more than add to the weight: there is no delta of adapter {adapter_name!r}."
                )
            updates.append(module.delta_weight().to(weight.device))
        return sum(updates) if updates else torch.zeros(self.out_features, self.in_features, device=weight.device)

    def _active(self, adapter_name: str) -> list[PromptModule]:
        return [module for module in self.prompt_modules(adapter_name) if module.dim]

    def check_foldable(self, adapter_name: str) -> None:
        """Refuse an adapter whose active modules the leaf's weight and bias cannot express.

        Raises:
            ValueError: says which, or that the leaf has no bias.
        """
        modules = self._active(adapter_name)
        if rows := sorted({module.row for module in modules if not module.merges()}):
            raise ValueError(not_mergeable(adapter_name, rows))
        rows = sorted({module.row for module in modules if not module.is_linear})
        if rows and getattr(self.get_base_layer(), "bias", None) is None:
            raise ValueError(
                f"adapter {adapter_name!r} has active {' and '.join(rows)} modules on a {type(self.get_base_layer()).__name__} "
                "without a bias, which would have to take up what they add. Keep the adapter unmerged."
            )

    def fold(self, adapter_names: list[str], safe_merge: bool) -> list[tuple[str, Folded]]:
        """The leaf's weight and bias after each of the adapters that change them, in their dtypes.

        Raises:
            ValueError: if they cannot be expressed so, or with ``safe_merge`` if one makes a number infinite or NaN.
        """
        steps: list[tuple[str, Folded]] = []
        for name in filter(self._active, adapter_names):
            self.check_foldable(name)
            old = steps[-1][1] if steps else self._weights()
            new = old
            for module in self._active(name):
                new = module.fold(*new)
            new = tuple(b if b is None else b.detach().to(a.dtype) for a, b in zip(old, new, strict=True))
            if safe_merge and not all(torch.isfinite(tensor).all() for tensor in new if tensor is not None):
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken; nothing was merged."
                )
            steps.append((name, new))
        return steps

    def _weights(self) -> Folded:
        bias = getattr(self.get_base_layer(), "bias", None)
        return self.get_base_weight(), None if bias is None else bias.data

    def _set_weights(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        now, leaf = self.get_base_weight(), self.get_base_layer()
        self.set_base_weight(weight.to(now.device, now.dtype))
        if bias is not None:
            leaf.bias.data = bias.to(leaf.bias.device, leaf.bias.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put what linear and affine modules do into the leaf's own weight and bias."""
        names = check_adapters_to_merge(self, adapter_names)
        steps = self.fold(names, safe_merge)
        before = self._weights() if steps else None
        for name, after in steps:
            if not all(module.is_linear for module in self._active(name)):
                self.before_merge[name] = before
            before = after
        if steps:
            self._set_weights(*before)
        self.merged_adapters.extend(
            name for name in names if self.prompt_modules(name) or name in self.drop_path_rates
        )

    def unmerge(self) -> None:
        """Give the leaf the weight and bias back that it had before adapters were merged, sums to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.before_merge:  # a factor of zero could not be undone
                self._set_weights(*self.before_merge.pop(name))
            elif self._active(name):
                weight = self.get_base_weight()
                self.set_base_weight((weight - self.get_delta_weight(name).detach()).to(weight.dtype))

    def __repr__(self) -> str:
        return "noah." + super().__repr__()


class NoahLinear(NoahLayer):
    """A wrapped Linear: PEFT's ``target_modules="all-linear"`` knows wrapped Linears by their class name alone."""


def noah_layers(model: nn.Module) -> Iterator[tuple[str, NoahLayer]]:
    """The wrapped leaves in ``model`` with their names."""
    return ((key, module) for key, module in model.named_modules() if isinstance(module, NoahLayer))


def not_mergeable(adapter_name: str, modules: list[str]) -> str:
    """The sentence that says why an adapter cannot be merged."""
    linear = ", ".join(name for name, cls in PROMPT_MODULES.items() if cls.merges())
    return (
        f"adapter {adapter_name!r} has active {' and '.join(modules)} modules, which no single weight can express: only what "
        f"is linear merges ({linear}). Keep the adapter unmerged, or set or train an architecture with rows of these alone."
    )


def is_quantised(layer: nn.Module) -> bool:
    """Whether a leaf's weight is packed: by torchao, a tensor type of its own; by bitsandbytes, integers."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return False
    return not weight.is_floating_point() or type(weight).__module__.partition(".")[0] == "torchao"
