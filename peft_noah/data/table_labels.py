"""Labels of tables as class indices, with the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import datasets
from datasets import ClassLabel

from peft_noah.data.class_names import look_alike
from peft_noah.data.table_columns import kind_of, type_name

_KINDS = ("integer", "text", "bool")
_FLOATS = ("float16", "float32", "float64")


def encode_labels(
    tables: Mapping[str, datasets.Dataset],
    columns: Mapping[str, str | None],
    num_classes: int | None = None,
    what: str = "image",
) -> tuple[tuple[str, ...], dict[str, list[int | None]]]:
    """Class names and, per split, class indices; where the data has no names, the training split's values are them.

    Whole numbers are alike whatever their width, and so are texts. Where `num_classes` is known, whole numbers are
    indices already, up to the largest in any split: 800 images need not show all of 397 classes. A split without a
    column of labels, or with none that is not -1, has only labels of None.

    Raises:
        ValueError: the splits' labels differ in names, type or values, or are of a type that no class has.
    """
    values = {
        name: [None] * len(tables[name]) if column is None else tables[name][column][:]
        for name, column in columns.items()
    }
    values = {name: _known(_cleaned(labels), name) for name, labels in values.items()}
    features = {
        name: tables[name].features[column]
        for name, column in columns.items()
        if name == "train" or any(label is not None for label in values[name])
    }
    _check_alike(features)
    first = features["train"]
    if isinstance(first, ClassLabel):
        return tuple(first.names), values
    _check_kind(first, columns["train"], values["train"])
    if num_classes is not None and kind_of(first) == "integer":
        largest = max((value for labels in values.values() for value in labels if value is not None), default=0)
        return tuple(map(str, range(min(largest + 1, num_classes)))), values
    known = sorted({value for value in values["train"] if value is not None and value != -1})
    return tuple(map(str, known)), _as_indices(values, known, what)


def _cleaned(labels: list[Any]) -> list[Any]:
    """The labels; None for NaN and for a text without letters."""
    return [None if label != label or (isinstance(label, str) and not label.strip()) else label for label in labels]


def _known(labels: list[Any], split: str) -> list[Any]:
    """The labels; all None where validation or test have none but missing ones."""
    missing = (label is None or label == -1 for label in labels)
    return [None] * len(labels) if split != "train" and all(missing) else labels


def _check_alike(features: Mapping[str, Any]) -> None:
    train = features["train"]
    for name, feature in features.items():
        if kind_of(feature) != kind_of(train):
            raise ValueError(
                f"the labels of the {name} split differ from those of the train split: {_difference(feature, train)}. "
                "Give all splits the same label names in the same order."
            )


def _difference(feature: Any, train: Any) -> str:
    if not (isinstance(feature, ClassLabel) and isinstance(train, ClassLabel)):
        return f"{type_name(feature)} against {type_name(train)}"
    pairs = zip_longest(feature.names, train.names)
    index, (name, name_in_train) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index} is {name!r} against {name_in_train!r}"


def _check_kind(feature: Any, column: str, labels: list[Any]) -> None:
    if (kind := kind_of(feature)) in _KINDS:
        return
    missing = sum(label is None for label in labels)
    why = f" ({missing:,} are missing, so whole numbers are stored as floats)" if kind in _FLOATS and missing else ""
    raise ValueError(
        f"the label column {column!r} holds {type_name(feature)}{why}: allowed are class labels, whole numbers, "
        "strings and booleans. Name another by label_column."
    )


def _as_indices(values: Mapping[str, list[Any]], known: list[Any], what: str) -> dict[str, list[int | None]]:
    """The place of each label among those of the training split; -1 and None stay."""
    index = {value: position for position, value in enumerate(known)}
    for name, labels in values.items():
        unknown = [value for value in dict.fromkeys(labels) if value not in index and value not in (None, -1)]
        if unknown:
            raise ValueError(
                f"the {name} split has the label {unknown[0]!r}, which no training {what} has."
                f"{look_alike(str(unknown[0]), map(str, known))} Add training {what}s of it, or remove its {what}s."
            )
    return {name: [index.get(value, value) for value in labels] for name, labels in values.items()}
