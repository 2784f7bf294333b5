"""A LoRA-only subnet as an adapter of PEFT's own LoRA, weight for weight.

`peft.convert_to_lora` serves a LoRA-only adapter too, by a singular value decomposition at one rank, or one accuracy, for
all layers. Here every block keeps the rank that the search gave it, blocks without LoRA are no targets, and leaves that
only carry stochastic depth do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from peft import LoraConfig

from peft_noah.architecture import Architecture
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.layer import NoahLayer


def as_peft_lora(
    layers: Mapping[str, NoahLayer], config: NoahConfig, architecture: Architecture, adapter_name: str
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """What `NoahModel.export_lora` builds an adapter of: its config, and its LoRA weights by saved key.

    Args:
        layers: the wrapped leaves by their names in the backbone.
        config: of the adapter.
        architecture: the subnet.
        adapter_name: the adapter that holds its weights.

    Raises:
        ValueError: if the architecture is not LoRA alone, or empty.
    """
    ranks, weights, others = {}, {}, set()
    for key, layer in layers.items():
        for module in layer.prompt_modules(adapter_name):
            dim = architecture[module.row][module.block] if module.row in architecture else 0
            lora = module.as_peft_lora(dim) if dim else {}
            if lora is None:
                others.add(module.row)
            elif lora:
                ranks[key] = dim
                weights.update({f"model.{key}.{name}": value for name, value in lora.items()})
    if others:
        raise ValueError(
            f"a LoraConfig cannot express {' and '.join(row for row in architecture if row in others)}: only LoRA-only "
            "architectures can be exported. Give one with LoRA's rows alone, or keep the adapter as it is with extract()."
        )
    if not ranks:
        raise ValueError("all LoRA dims of this architecture are 0, so there is nothing to export.")
    return _lora_config(config, ranks), weights


def _lora_config(config: NoahConfig, ranks: Mapping[str, int]) -> LoraConfig:
    rank = Counter(ranks.values()).most_common(1)[0][0]
    uneven = {key: value for key, value in ranks.items() if value != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=config.lora_scale * rank,  # PEFT scales by alpha / r
        rank_pattern=uneven,
        alpha_pattern={key: config.lora_scale * value for key, value in uneven.items()},
        target_modules=list(ranks),
        lora_dropout=config.dropout,
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
    )
