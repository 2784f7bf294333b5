"""Which columns of a table hold images or texts, and labels, by their types where they were not named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets
from datasets import ClassLabel, Features, Image, Value


def find_image_columns(tables: Mapping[str, datasets.Dataset], asked: str | None) -> dict[str, str]:
    """Per split, the name of the column of images: as asked, else the one of that type.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    return {split: find_image_column(table.features, split, asked) for split, table in tables.items()}


def find_text_columns(
    tables: Mapping[str, datasets.Dataset], asked: str | None, labels: Mapping[str, str | None]
) -> dict[str, str]:
    """Per split, the name of the column of texts: as asked, else `text`, else the only one beside the `labels`.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    return {split: find_text_column(table.features, split, asked, labels[split]) for split, table in tables.items()}


def find_label_columns(tables: Mapping[str, datasets.Dataset], asked: str | None) -> dict[str, str | None]:
    """Per split, the name of the column of labels; None where validation or test have none of the training split's.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    train = find_label_column(tables["train"].features, "train", asked)
    found: dict[str, str | None] = {}
    for split, table in tables.items():
        name = train
        if asked is None and name not in table.features and _label_candidates(table.features):
            name = find_label_column(table.features, split, None)
        found[split] = name if name in table.features else None
    return found


def find_text_column(features: Features, split: str, asked: str | None, label: str | None) -> str:
    """The name of a split's column of texts, which the column `label` is not; as `find_text_columns`."""
    if asked is not None:
        if asked not in features or kind_of(features[asked]) != "text":
            fault = "column" if asked not in features else "column of texts"
            raise ValueError(_no_column("text", f"no {fault} {asked!r}", split, features))
        return asked
    found = [name for name, feature in features.items() if name != label and kind_of(feature) == "text"]
    if len(found) != 1 and "text" not in found:
        what = f"{len(found)} columns of texts" if found else "no column of texts"
        raise ValueError(_no_column("text", what, split, features))
    return "text" if "text" in found else found[0]


def find_image_column(features: Features, split: str, asked: str | None) -> str:
    """The name of a split's column of images; as `find_image_columns`."""
    if asked is not None:
        if asked not in features:
            raise ValueError(_no_column("image", f"no column {asked!r}", split, features))
        if not _is_image(features[asked]) and not _is_binary(features[asked]):
            raise ValueError(_no_column("image", f"no column of encoded images {asked!r}", split, features))
        return asked
    images = [name for name, feature in features.items() if _is_image(feature)]
    if len(images) != 1:
        found = f"{len(images)} columns of images" if images else "no column of encoded images"
        raise ValueError(_no_column("image", found, split, features))
    return images[0]


def find_label_column(features: Features, split: str, asked: str | None) -> str:
    """The name of a split's column of labels: as asked, else the one that has class names, or is called `label`.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    if asked is not None:
        if asked not in features:
            raise ValueError(_no_column("label", f"no column {asked!r}", split, features))
        return asked
    labels = _label_candidates(features)
    if len(labels) != 1:
        raise ValueError(_no_column("label", "no single column of labels", split, features))
    return labels[0]


def _label_candidates(features: Features) -> list[str]:
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not labels:
        return ["label"] if "label" in features else []
    return ["label"] if "label" in labels else labels


def _is_image(feature: Any) -> bool:
    """Whether a column can be decoded as images: datasets' Image, or the same bytes in a plain parquet file."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and _is_binary(feature.get("bytes")))


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _no_column(kind: str, found: str, split: str, features: Features) -> str:
    columns = ", ".join(f"{name} ({type_name(feature)})" for name, feature in features.items())
    return f"the {split} split has {found}; its columns are {columns}. Name the right one by {kind}_column."


def type_name(feature: Any) -> str:
    """What a message calls the type of a column."""
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def kind_of(feature: Any) -> Any:
    """What a column holds, whatever the width of its type: ``"integer"``, ``"text"``, another type's name, or the feature."""
    if not isinstance(feature, Value):
        return feature
    if re.fullmatch(r"u?int\d+", feature.dtype):
        return "integer"
    return "text" if feature.dtype in ("string", "large_string", "string_view") else feature.dtype


def undecoded(table: datasets.Dataset, image_column: str) -> datasets.Column:
    """The images of a table as `{"bytes": ..., "path": ...}`."""
    return table.cast_column(image_column, Image(decode=False))[image_column]
