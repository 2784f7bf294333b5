"""`NoahConfig`: everything that changes what a NOAH adapter computes, saved with it."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType
from transformers.activations import ACT2FN

from peft_noah.architecture import MAX_BLOCKS, Architecture
from peft_noah.jsonfile import check_int, check_number, read_json
from peft_noah.plugins import read_plugins
from peft_noah.search_space import SPACES, SearchSpace
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.card import MAX_LABELS, complete_card
from peft_noah.tuner.pickles import refuse_pickle
from peft_noah.tuner.recipes import RECIPES, STRENGTH_WIDTH
from peft_noah.version import __version__

_CHOICES = {
    "recipe": tuple(RECIPES),
    "vpt_position": ("after_cls", "last"),
    "vpt_past_depth": ("drop", "carry"),
    "init": ("identity", "normal"),
}

_TYPES = {
    "base_model_name_or_path": (str, os.PathLike),
    "revision": (str,),
    "auto_mapping": (Mapping,),
    "backbone": (Mapping,),
    "peft_version": (str,),
    "noah_version": (str,),
    "inference_mode": (bool,),
    "init_weights": (bool,),
    "lora_shared_down": (bool,),
}
#: most names in one option, and most letters in one of them or in a regular expression
MAX_NAMES, MAX_NAME = 10_000, 10_000


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class NoahConfig(PeftConfig):
    """Configuration of a NOAH adapter: a supernet, or one frozen subnet of it.

    With no argument it is the supernet of the VTAB-1k search space: LoRA, Adapter and VPT in every block, dims 1, 5 and
    10, depths at each quarter of the blocks. With ``architecture`` it is one subnet, holding no more than that.

    Every option after ``target_modules`` that is left at None takes its value from ``recipe``. Source: NOAH
    (arXiv 2206.04673) and its released code.

    Raises:
        ValueError: on a value that is not allowed, or settings that contradict each other.
    """

    recipe: str = field(
        default="paper",
        metadata=_help("'paper' or 'released' (the authors' code): default of every option that is left at None."),
    )
    architecture: Any = field(
        default=None,
        metadata=_help(
            "Stored dims: an Architecture, or a dict with one list of dims per module ('lora', 'adapter', 'vpt'), one "
            "entry per block, 0 where the module is absent. 'lora_query', 'lora_key', 'lora_value', 'lora_output', "
            "'lora_fc1' and 'lora_fc2' are LoRA on one Linear of each block, 'adapter_plus' is an Adapter with a factor per "
            "channel behind attention and MLP, 'ssf' a learned scale and shift (dim 1) of each Linear and norm, 'bitfit' "
            "their biases (dim 1). None: the largest of the search space."
        ),
    )
    search_space: Any = field(
        default=None,
        metadata=_help(
            "'vtab', 'few_shot', 'wide', a SearchSpace or its dict: what a supernet samples from; 'wide' is LoRA on each "
            "Linear of a block, of lora_strength 1 where nothing else is given, and Adapter+; the others are the paper's. "
            "None: 'vtab' for a supernet, nothing to search where an architecture is given."
        ),
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata=_help(
            "Linear layers that carry LoRA, and other modules whose site is a projection, as in PEFT's LoRA: names, a "
            "regular expression, or 'all-linear'. The site names 'query', 'key' and 'value' work for every known family. "
            "None: query and key, and value where the recipe shares the down matrix. Adapter and VPT find their places "
            "by themselves."
        ),
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=_help("Leaves to leave alone, by name or regular expression, whatever the module.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata=_help("Indices of the blocks whose target_modules carry LoRA, rows by site aside. None: all."),
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_help("Name of the list of blocks, where layers_to_transform is used.")
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata=_help("Modules trained and saved whole. None: the classifier of a known family. []: none."),
    )
    lora_shared_down: bool | None = field(
        default=None,
        metadata=_help("One LoRA down matrix per block serves query, key and value; rows by site keep their own."),
    )
    lora_scale: float | None = field(default=None, metadata=_help("Factor s of the LoRA update; no unit."))
    lora_strength: float | None = field(
        default=None,
        metadata=_help(
            "Instead of lora_scale, a factor that means the same on backbones of other widths d: "
            f"s = lora_strength * {STRENGTH_WIDTH} / d. It becomes lora_scale when the model is made; no unit."
        ),
    )
    adapter_scale: float | None = field(default=None, metadata=_help("Factor s of the Adapter's update; no unit."))
    adapter_activation: str | None = field(
        default=None,
        metadata=_help("Activation inside the Adapter, a name of transformers' ACT2FN; Adapter+ has GELU."),
    )
    vpt_position: str | None = field(
        default=None,
        metadata=_help("'after_cls': [CLS, P, E]; 'last': [CLS, E, P]. Without a mask both attend alike."),
    )
    vpt_past_depth: str | None = field(
        default=None, metadata=_help("'drop': tokens live in their own block; 'carry': they run on past VPT's depth.")
    )
    init: str | None = field(
        default=None,
        metadata=_help(
            "'identity': LoRA, Adapter and SSF start at zero effect; 'normal': all from a normal, std 0.02."
        ),
    )
    dropout: float | None = field(
        default=None,
        metadata=_help("Rate on LoRA's input, the Adapter's hidden units and VPT's tokens; a probability."),
    )
    drop_path: float | None = field(
        default=None,
        metadata=_help("Stochastic depth in the last block while training, growing linearly from 0; a probability."),
    )
    init_weights: bool = field(
        default=True, metadata=_help("False: start far from the identity, whatever the recipe. For tests.")
    )
    backbone: dict[str, Any] | None = field(
        default=None,
        metadata=_help("model_type, num_blocks, width and fingerprint of the model it was made for; filled in."),
    )
    label_names: list[str] | None = field(
        default=None,
        metadata=_help("Names of the classes, in the order of the logits; filled in from the model's id2label."),
    )
    noah_version: str | None = field(default=None, metadata=_help("Version of peft-noah that wrote it; filled in."))

    plugins: dict[str, str] | None = field(
        default=None,
        metadata=_help(
            "Rows whose prompt modules come from outside peft-noah, with the Python module that registers each; filled in."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("NOAH")
        self.noah_version = self.noah_version or __version__
        self._check_types()
        self._check_choice("recipe")
        if self.search_space == "wide" and self.lora_scale is None and self.lora_strength is None:
            self.lora_strength = 1.0
        if self.lora_strength is not None and self.lora_scale is not None:
            raise ValueError("lora_strength decides lora_scale: give one of the two.")
        left_open = () if self.lora_strength is None else ("lora_scale",)  # the model's width decides it
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None and name not in left_open:
                setattr(self, name, value)
        for name in _CHOICES:
            self._check_choice(name)
        self._check_numbers()
        self._normalise_targets()
        self._check_architecture()

    def _check_architecture(self) -> None:
        if self.architecture is not None:
            self.architecture = Architecture(self.architecture).to_dict()
        if isinstance(self.search_space, Mapping):
            self.search_space = SearchSpace.from_dict(self.search_space)
        elif not isinstance(self.search_space, SearchSpace) and self.search_space not in (None, *SPACES):
            raise ValueError(
                f"search_space {reprlib.repr(self.search_space)} is not known (known: {', '.join(SPACES)}). Give one of these names, "
                "or a SearchSpace."
            )
        if self.architecture is not None and self.search_space is not None:
            self._check_contradiction(Architecture(self.architecture))
        if isinstance(self.search_space, SearchSpace):
            self.search_space = self.search_space.to_dict()

    def _check_contradiction(self, architecture: Architecture) -> None:
        if isinstance(self.search_space, str):
            self.search_space = SPACES[self.search_space](architecture.num_blocks, modules=tuple(architecture))
        largest = self.search_space.largest()
        if architecture != largest:
            raise ValueError(
                f"architecture {_brief(architecture)} is not the largest of search_space, {_brief(largest)}, which a "
                "supernet stores. Give one of the two: search_space for a supernet, architecture for a frozen subnet."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; sets as sorted lists, so that equal configs are saved as equal bytes.

        ``plugins`` and ``lora_strength`` are there only where there are any.
        """
        settings = super().to_dict()
        for name in ("plugins", "lora_strength"):
            if settings[name] is None:
                del settings[name]
        return {
            key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in settings.items()
        }

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Write adapter_config.json, and how to load the adapter into the card that PEFT writes beside it."""
        super().save_pretrained(save_directory, **kwargs)
        factors = {name: getattr(self, name) for name in ("lora_scale", "adapter_scale")}
        family = BACKBONES.get((self.backbone or {}).get("model_type"))
        reads = "images" if family is None else family.reads
        complete_card(save_directory, self.base_model_name_or_path, self.architecture, factors, self.plugins, reads)

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, subfolder: str | None = None, **kwargs) -> NoahConfig:
        """Read adapter_config.json from a folder or the Hub, as every PEFT config does.

        Raises:
            ValueError: if the file is broken, or a folder or repository has its weights as a pickle alone, which PEFT
                would go on to read.
            TypeError: if the file has no peft_type.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        refuse_pickle(pretrained_model_name_or_path, subfolder, kwargs)
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str | os.PathLike[str], **kwargs) -> dict[str, Any]:
        """The settings in a file, read with bounds; what is of the saving process alone is left out, as PEFT does.

        A file of another PEFT method is read too: `from_pretrained` makes that method's config of it.

        Raises:
            ValueError: if the file is broken, or names a method that PEFT does not know.
        """
        settings = read_json(path_json_file)
        if not isinstance(settings, dict):
            raise ValueError(f"{os.fspath(path_json_file)} holds no settings, which are a JSON object.")
        if "peft_type" in settings and settings["peft_type"] not in list(PeftType):
            raise ValueError(
                f"{os.fspath(path_json_file)} has the peft_type {reprlib.repr(settings['peft_type'])}, which is not "
                f"known (known: {', '.join(PeftType)})."
            )
        settings.pop("runtime_config", None)
        return settings

    def _check_types(self) -> None:
        for name, kinds in _TYPES.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise ValueError(f"{name} is {reprlib.repr(value)}; give a {expected}.")
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            _check_names(name, getattr(self, name))
        _check_labels(self.label_names)
        if self.plugins is not None:
            self.plugins = read_plugins(self.plugins)
        layers = self.layers_to_transform
        if layers is not None and not isinstance(layers, (list, tuple, set, frozenset, range)):
            check_int(layers, "layers_to_transform", 0, MAX_BLOCKS)
        elif layers is not None:
            check_int(len(layers), "the number of layers_to_transform", 0, MAX_BLOCKS)
            for layer in layers:
                check_int(layer, "one of layers_to_transform", 0, MAX_BLOCKS)

    def _check_choice(self, name: str) -> None:
        value, allowed = getattr(self, name), _CHOICES[name]
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {reprlib.repr(value)}.")

    def _check_numbers(self) -> None:
        for name in ("dropout", "drop_path"):
            setattr(self, name, check_number(getattr(self, name), name, 0, below=1))
        for name in ("lora_strength", "lora_scale", "adapter_scale"):
            if getattr(self, name) is not None:
                setattr(self, name, check_number(getattr(self, name), name))
        if not isinstance(self.adapter_activation, str) or self.adapter_activation not in ACT2FN:
            raise ValueError(
                f"adapter_activation {reprlib.repr(self.adapter_activation)} is not in transformers' ACT2FN (known: "
                f"{', '.join(sorted(ACT2FN))})."
            )

    def _normalise_targets(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), (list, tuple, frozenset)):
                setattr(self, name, set(getattr(self, name)))
        if isinstance(self.layers_to_transform, (tuple, set, frozenset, range)):
            self.layers_to_transform = sorted(self.layers_to_transform)
        if isinstance(self.layers_pattern, (tuple, set, frozenset)):
            self.layers_pattern = sorted(self.layers_pattern)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")


def _check_names(name: str, values: object) -> None:
    kinds = (list, tuple, set, frozenset)
    texts = values if isinstance(values, kinds) else () if values is None else (values,)
    if len(texts) > MAX_NAMES or not all(isinstance(text, str) and len(text) <= MAX_NAME for text in texts):
        raise ValueError(
            f"{name} is {reprlib.repr(values)}; give a text of at most {MAX_NAME:,} letters, or at most {MAX_NAMES:,} of "
            "them as a list."
        )


def _check_labels(names: object) -> None:
    if names is None:
        return
    if not isinstance(names, (list, tuple)) or not 1 <= len(names) <= MAX_LABELS:
        raise ValueError(
            f"label_names is {reprlib.repr(names)}; give a list with the names of 1 to {MAX_LABELS:,} classes."
        )
    for name in names:
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ValueError(
                f"label_names has {reprlib.repr(name)}; the name of a class is a text of at most {MAX_NAME:,} letters."
            )


def _brief(architecture: Architecture) -> str:
    text = str(architecture.to_dict())
    return text if len(text) <= 1_000 else f"{text[:1_000]}..."
