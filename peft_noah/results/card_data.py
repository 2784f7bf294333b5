"""What a model card tells, as plain data that is checked: it may come from strangers."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peft_noah.architecture import Architecture
from peft_noah.formatting import one_line
from peft_noah.jsonfile import MAX_COUNT, check_int
from peft_noah.plugins import read_plugins
from peft_noah.results.statistics import standard_error
from peft_noah.tuner.card import MAX_LABELS


@dataclass(frozen=True, kw_only=True)
class CardData:
    """What a model card tells.

    Attributes:
        base_model: Hub id or folder of the backbone.
        architecture: dims of the adapter, one row per prompt module, one dim per block.
        parameters: trainable prompt parameters, the classifier not counted.
        head_parameters: parameters of the classifier, saved with the adapter.
        labels: names of the classes, in the order of the logits.
        preprocessing: how images become inputs: ``size`` (height, width; pixels), ``mean`` and ``std`` per channel (no
            unit, on the scale 0 to 1), ``resample``; how texts do: ``max_tokens``. Other entries are ignored.
        recipe: of the prompt modules, ``"paper"`` or ``"released"``.
        task: name of the data it was trained on.
        dataset: Hub id of that data; None where it is not on the Hub.
        accuracy: per split, such as ``"test"``: share of images classified right (0 to 1), and number of images; None
            where the split has no labelled images.
        training: how it was trained: inherited or retrained, sizes of the splits, epochs, seed, ...
        search: how it was found: budget, candidates scored, variant, ...; empty where it was not searched.
        versions: of the packages that made it.
        figure: picture of the architecture, a path inside the adapter's folder; None for none.
        interpolate_pos_encoding: whether the images have another size than the backbone was pretrained with.
        adapter: what the snippet loads: Hub id or folder of the adapter. Beside the adapter it reads the image
            processor, preprocessor_config.json, or the tokenizer.
        plugins: rows whose prompt modules come from outside, with the Python module that registers each.
        what: what is classified, in a word: ``"image"`` or ``"text"``.

    Raises:
        ValueError: a value cannot be.
    """

    base_model: str
    architecture: Mapping[str, Sequence[int]]
    parameters: int
    head_parameters: int
    labels: Sequence[str]
    preprocessing: Mapping[str, object]
    recipe: str
    task: str
    dataset: str | None = None
    accuracy: Mapping[str, tuple[float, int] | None] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)
    search: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    figure: str | None = None
    interpolate_pos_encoding: bool = False
    adapter: str = "path/to/this/folder"
    plugins: Mapping[str, str] = field(default_factory=dict)
    what: str = "image"

    def __post_init__(self) -> None:
        Architecture(self.architecture)
        read_plugins(self.plugins)
        self._check_kinds()
        self._check_preprocessing()
        for split, measured in self.accuracy.items():
            if measured is None:
                continue
            if not _is_numbers(measured, 2):
                raise ValueError(
                    f"the accuracy on {split!r} is {reprlib.repr(measured)}; give a share and a number of {self.what}s."
                )
            standard_error(*measured)
        if self.figure is not None and not _is_inside(self.figure):
            raise ValueError(
                f"the figure {reprlib.repr(self.figure)} is not inside the adapter's folder. Give a relative path such as "
                "'architecture.png'."
            )

    def _check_kinds(self) -> None:
        for name in ("preprocessing", "accuracy", "training", "search", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} is {reprlib.repr(getattr(self, name))}; give a mapping.")
        for name in ("dataset", "figure"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} is {reprlib.repr(getattr(self, name))}; give a text, or None.")
        for name in ("base_model", "recipe", "task", "adapter"):
            if not isinstance(getattr(self, name), str) or not one_line(getattr(self, name)):
                raise ValueError(f"{name} is {reprlib.repr(getattr(self, name))}; give its name as a text.")
        for name in ("parameters", "head_parameters"):
            check_int(getattr(self, name), name, 0, MAX_COUNT)
        listed = isinstance(self.labels, Sequence) and not isinstance(self.labels, str)
        if not listed or not 1 <= len(self.labels) <= MAX_LABELS:
            raise ValueError(f"labels is {reprlib.repr(self.labels)}; give the names of 1 to {MAX_LABELS:,} classes.")
        if self.what not in ("image", "text"):
            raise ValueError(f"what is {reprlib.repr(self.what)}; give image or text.")

    def _check_preprocessing(self) -> None:
        if self.what == "text":
            check_int(self.preprocessing.get("max_tokens"), "max_tokens of the preprocessing", 1, MAX_COUNT)
            return
        for name, length in (("size", 2), ("mean", 3), ("std", 3)):
            if not _is_numbers(values := self.preprocessing.get(name), length):
                raise ValueError(
                    f"preprocessing has {name} {reprlib.repr(values)}; give {length} numbers, as "
                    "Preprocessing.to_dict() does."
                )


def _is_numbers(values: object, length: int) -> bool:
    listed = isinstance(values, (list, tuple)) and len(values) == length
    return listed and all(isinstance(value, (int, float)) for value in values)


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return bool(path) and ":" not in path and "\\" not in path and not {"", ".."} & set(parts) and path.isprintable()
