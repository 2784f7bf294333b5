"""A LoRA-only subnet as an adapter of PEFT's own LoRA, weight for weight.

`peft.convert_to_lora` serves a LoRA-only adapter too, by a singular value decomposition at one rank, or one accuracy, for
all layers. Here every block keeps the rank that the search gave it, blocks without LoRA are no targets, and leaves that
only carry stochastic depth do not matter.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, get_peft_model_state_dict

from peft_noah.architecture import Architecture
from peft_noah.tuner.prompts import Lora

if TYPE_CHECKING:
    from peft_noah.tuner.model import NoahModel


def export_lora(model: NoahModel, architecture: Architecture, adapter_name: str) -> PeftModel:
    """Build what `NoahModel.export_lora` describes.

    Raises:
        ValueError: if the architecture is not LoRA alone, or empty.
    """
    others = [name for name, row in architecture.items() if name != Lora.name and any(row)]
    if others:
        raise ValueError(
            f"a LoraConfig cannot express {' and '.join(others)}: only LoRA-only architectures can be exported. Give one "
            "with a 'lora' row alone, or keep the adapter as it is with extract()."
        )
    loras = {
        key: (layer.noah_lora[adapter_name], architecture[Lora.name][layer.noah_lora[adapter_name].block])
        for key, layer in model.noah_layers()
        if adapter_name in layer.noah_lora and Lora.name in architecture
    }
    loras = {key: (lora, rank) for key, (lora, rank) in loras.items() if rank}
    if not loras:
        raise ValueError("all LoRA dims of this architecture are 0, so there is nothing to export.")
    config = _lora_config(model, {key: rank for key, (_, rank) in loras.items()}, adapter_name)
    state = {
        key: value
        for key, value in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if ".noah_" not in key
    }
    for key, (lora, rank) in loras.items():
        state.update({f"model.{key}.{name}": value for name, value in lora.as_peft_lora(rank).items()})
    return model._with_weights(config, state)


def _lora_config(model: NoahModel, ranks: dict[str, int], adapter_name: str) -> LoraConfig:
    config = model.peft_config[adapter_name]
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
