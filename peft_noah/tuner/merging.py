"""What must hold before adapters are added to the backbone's weights; a layer adds its own, PEFT goes over the layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from peft.tuners.tuners_utils import BaseTuner

from peft_noah.tuner.layer import is_quantised, noah_layers, not_mergeable


def check_mergeable(tuner: BaseTuner, adapter_names: Sequence[str] | None, safe_merge: bool) -> None:
    """Refuse to merge what no weight can express, before any weight has changed.

    Args:
        tuner: whose adapters are to be merged.
        adapter_names: which ones; None: those that are active, layer by layer.
        safe_merge: whether to compute the merged weights once, and look for infinite values.

    Raises:
        TypeError: if ``adapter_names`` is one string.
        ValueError: for an adapter that does not exist or has modules active that are not linear, for leaves without the
            bias that a module needs, for quantised weights, and with ``safe_merge`` if a merged weight would not be finite.
    """
    if isinstance(adapter_names, str):
        raise TypeError(f"adapter_names should be a list of strings, got {adapter_names!r}.")
    layers = dict(noah_layers(tuner.model))
    asked = {key: layer.active_adapters if adapter_names is None else adapter_names for key, layer in layers.items()}
    for name in dict.fromkeys(itertools.chain.from_iterable(asked.values())):
        if name not in tuner.peft_config:
            raise ValueError(f"adapter {name!r} does not exist (known: {', '.join(tuner.peft_config)}).")
        modules = (module for layer in layers.values() for module in layer.prompt_modules(name))
        nonlinear = {module.row for module in modules if module.dim and not module.merges()}
        if nonlinear:
            raise ValueError(not_mergeable(name, sorted(nonlinear)))
    for key, layer in layers.items():
        for name in asked[key]:
            layer.check_foldable(name)
        if is_quantised(layer.get_base_layer()) and any(
            module.dim for name in asked[key] for module in layer.prompt_modules(name)
        ):
            raise ValueError(
                f"{key!r} is quantised ({type(layer.get_base_layer().weight).__name__}): adding an update to its "
                "rounded weight would lose most of it. Keep the adapter unmerged, or merge it on the backbone loaded "
                "without quantisation."
            )
    if safe_merge:
        for key, layer in layers.items():
            layer.fold([name for name in asked[key] if name not in layer.merged_adapters], True)
