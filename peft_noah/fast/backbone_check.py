"""Whether a family's layout is described right: for whoever adds one with `register_backbone`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from peft_noah.fast.compare import Comparison
from peft_noah.fast.forward import fast_forward
from peft_noah.tuner.backbones import Backbone, find_backbone, has_module
from peft_noah.tuner.backbones.images import image_size, num_channels, read_images
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.prompts import PROMPT_MODULES

#: rows that put a module at every site; in the second one tokens run on where the recipe lets them
_ROWS = ({"lora": 2, "adapter": 2, "vpt": 2}, {"lora": 2, "adapter": 2})


@dataclass(frozen=True)
class BackboneReport:
    """What `check_backbone` found.

    Attributes:
        model_type: the family.
        num_blocks: how many blocks the model has; no unit.
        sites: path inside a block by site, for each one that works.
        modules: by the name of each prompt module, why the family has it not or it fails; None: it trains, and a subnet that is
            cut out of it computes the same.
        problems: what does not work, one sentence each.
        reason: why `fast_forward` is off for such models; None: it is on, and computes the same.
    """

    model_type: str
    num_blocks: int
    sites: Mapping[str, str]
    modules: Mapping[str, str | None]
    problems: tuple[str, ...]
    reason: str | None

    def __str__(self) -> str:
        lines = [f"{self.model_type}: {self.num_blocks} blocks"]
        lines += [f"  {site}: {path}" for site, path in self.sites.items()]
        lines += [f"  modules: {', '.join(row for row, reason in self.modules.items() if reason is None) or 'none'}"]
        lines += [f"  no {row}: {reason}" for row, reason in self.modules.items() if reason is not None]
        lines += [f"  does not work: {problem}" for problem in self.problems]
        return "\n".join([*lines, f"  fast_forward: {'on' if self.reason is None else f'off, {self.reason}'}"])


def check_backbone(model: PreTrainedModel, pixel_values: torch.Tensor | None = None) -> BackboneReport:
    """Try every site of a model's family, and compare the fast forward with the plain one, with modules at all of them.

    A site works if the model's outputs change when what its leaf computes is replaced by zeros. The comparison is the one
    that `fast_forward` makes in the first call of each kind. All happens on a copy, in float64, so a small model of the
    family is enough; the model itself stays as it is.

    Args:
        model: a transformers classifier of a registered family, with or without adapters.
        pixel_values: images to try (B, channels, height, width); None: noise of the size that the model is made for.

    Returns:
        The sites, what does not work, and why the fast forward is off, if it is.

    Raises:
        ValueError: if the family is not registered, or the model has no blocks where its layout says.
    """
    model = copy.deepcopy(model)
    model = (model.unload() if isinstance(model, PeftModel) else model).double().eval()
    model_type = model.config.model_type
    backbone = find_backbone(model_type)
    blocks = backbone.block_names(model)
    if not blocks:
        raise ValueError(
            f"model_type {model_type!r} keeps its blocks in {backbone.blocks!r}, says its layout, but this model has none "
            "there. Name the list of blocks as model.named_modules() does."
        )
    inputs = example_inputs(model) if pixel_values is None else {"pixel_values": pixel_values.double()}
    if "pixel_values" in inputs:
        read_images(model, tuple(inputs["pixel_values"].shape[2:]))
    sites, problems = {}, []
    for site, path in _sites(backbone, [model.get_submodule(name) for name in blocks]).items():
        block = next((name for name in blocks if has_module(model, f"{name}.{path}")), blocks[0])
        problem = _problem(model, f"{block}.{path}", inputs)
        if problem is None:
            sites[site] = path
        else:
            problems.append(f"{site}, {path!r}: {problem}")
    reason = "not all of its sites work" if problems else None
    everywhere = all(has_module(model, f"{name}.{backbone.mlp_output}") for name in blocks)
    for recipe in ("paper", "released") if not problems else ():
        for rows in _ROWS if backbone.no_tokens is None else _ROWS[1:]:
            rows = rows if everywhere else {name: dim for name, dim in rows.items() if name != "adapter"}
            try:
                reason = reason or _verdict(model, backbone, blocks, recipe, rows, inputs)
            except Exception as error:  # whatever a model makes of tokens that it does not expect
                problems.append(f"{' and '.join(rows)} together: {type(error).__name__}: {str(error)[:200]}")
    modules = {row: backbone.no_tokens if cls.adds_tokens else None for row, cls in PROMPT_MODULES.items()}
    for row in [row for row in modules if modules[row] is None]:
        modules[row] = _failure(model, row, len(blocks), inputs)
    return BackboneReport(model_type, len(blocks), sites, modules, tuple(dict.fromkeys(problems)), reason)


def _failure(model: nn.Module, row: str, num_blocks: int, inputs: Mapping[str, torch.Tensor]) -> str | None:
    """What goes wrong with a prompt module in every block; None: nothing."""
    config = NoahConfig(
        architecture={row: [1 if PROMPT_MODULES[row].is_switch else 2] * num_blocks},
        init_weights=False,
        modules_to_save=[],
    )
    try:
        tried = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).double()
        tried.train()(**inputs)[0].square().sum().backward()
        weights = [(name, weight) for name, weight in tried.named_parameters() if ".noah_" in name]
        if idle := [name for name, weight in weights if weight.grad is None]:
            return f"{len(idle)} of its weights get no gradient, such as {idle[0]}"
        with torch.no_grad():
            expected, cut = tried.eval()(**inputs)[0], tried.extract().double()
            equal = torch.equal(cut(**inputs)[0], expected)
        return None if equal else "a subnet that is cut out computes something else"
    except ValueError as error:  # a sentence
        return str(error).rstrip(".")
    except Exception as error:  # whatever a model makes of a module that it does not expect
        return f"{type(error).__name__}: {str(error)[:300]}"


def _sites(backbone: Backbone, blocks: list[nn.Module]) -> dict[str, str]:
    """Path inside a block of every site; of Linears that some models or blocks of the family lack, where one has them."""
    return {
        **{site: path for block in reversed(blocks) for site, path in backbone.linear_sites(block).items()},
        **backbone.projections,
        "attention_output": backbone.attention_output,
        "mlp_output": backbone.mlp_output,
        "norm": backbone.norm,
    }


def example_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Two images of noise of the size that a model is made for, or two texts of five tokens.

    Raises:
        ValueError: if its config does not say how large images are.
    """
    if "pixel_values" in inspect.signature(model.forward).parameters:
        return {"pixel_values": _noise(model)}
    texts = (
        1 if getattr(model.config, "pad_token_id", None) is None else 2
    )  # a decoder reads several with padding alone
    return {"input_ids": torch.arange(3, 13, device=next(model.parameters()).device).view(texts, -1)}


def _noise(model: PreTrainedModel) -> torch.Tensor:
    size = image_size(model.config)
    if size is None:
        raise ValueError(
            f"the config of this {model.config.model_type!r} does not say for which image_size it is made. Pass pixel_values."
        )
    generator = torch.Generator().manual_seed(0)
    shape = 2, num_channels(model.config), *size
    weight = next(model.parameters())
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.device, weight.dtype)


@torch.no_grad()
def _problem(model: nn.Module, key: str, inputs: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with a leaf as a site; None: nothing."""
    try:
        leaf = model.get_submodule(key)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name.startswith(f"{key.rpartition('.')[0]}.")]
        return f"there is no {key!r} (beside it: {', '.join(names[:20]) or 'nothing'})"
    plain = model(**inputs)[0]
    handle = leaf.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    try:
        changed = model(**inputs)[0]
    finally:
        handle.remove()
    return "what this leaf computes has no effect on the outputs" if torch.equal(plain, changed) else None


def _verdict(
    model: nn.Module,
    backbone: Backbone,
    blocks: list[str],
    recipe: str,
    rows: Mapping[str, int],
    inputs: Mapping[str, torch.Tensor],
) -> str | None:
    """Why the fast forward is off with modules at all sites, in evaluation or in training; None: it is on."""
    architecture = {name: [dim] * len(blocks) for name, dim in rows.items()}
    if "vpt" in rows:
        architecture["vpt"][len(blocks) // 2] = 0  # where the recipe lets tokens run on, they do so here
    config = NoahConfig(
        recipe=recipe,
        architecture=architecture,
        target_modules=list(backbone.projections),
        init_weights=False,
        modules_to_save=[],
    )
    tried = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).double()
    root = tried.get_base_model()
    with fast_forward(tried) as fast:
        if fast.reason is not None:
            return fast.reason
        fast.comparison = Comparison(root, [root.get_submodule(name) for name in backbone.block_names(root)], backbone)
        for training in (False, True):
            with torch.set_grad_enabled(training):
                tried.train(training)(**inputs)
            if fast.reason is not None:
                return fast.reason
    return None
