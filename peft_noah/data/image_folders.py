"""A dataset of image folders: `train/<class>/...` with further splits beside it, or `<class>/...` without any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from peft_noah.data.class_folders import ClassFolders, count_files, is_not_data, read_class_folders
from peft_noah.data.class_names import are_parts, look_alike
from peft_noah.data.decoding import image_extensions
from peft_noah.data.listings import Listing, Listings
from peft_noah.data.split_names import find_name, is_split_name, looks_like_test, looks_like_training, pick


def read_image_folders(folder: Path, names: Mapping[str, str | None]) -> Listings:
    """The listings of a folder of images.

    Where no folder is the training split, the folders are the classes themselves, and `unsplit` says so. A folder named
    as the validation or test split that holds images and no class folder has no labels: it is no class, and no split.

    Args:
        folder: of the dataset.
        names: what the splits are called.

    Raises:
        ValueError: there is no image, a split that is needed is missing or a link to nothing, a class folder has no
            image, validation or test have a class that training lacks, or the folders are not those of classes.
    """
    _check_links(folder, names)
    below = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not is_not_data(path.name)}
    if not below:
        loose = sum(map(_is_image, folder.iterdir()))
        raise ValueError(
            f"{folder} holds neither parquet files nor folders of images"
            f"{f', but {loose:,} images in no class folder' if loose else ''}. Give train.parquet and test.parquet, or "
            "train/<class>/ and test/<class>/ with images, or a metadata.csv with the columns file_name and label."
        )
    unlabelled = _unlabelled(below, names)
    if _is_unsplit(below, names, unlabelled):
        return _unsplit(folder, unlabelled)
    picked = pick({name: path for name, path in below.items() if not name.startswith(".")}, names, folder)
    found = {name: read_class_folders(_repeated(path), name) for name, path in picked.items()}
    return _as_listings(folder, found, _not_read(folder, picked))


def _check_links(folder: Path, names: Mapping[str, str | None]) -> None:
    """Refuse a split that is a link to nothing, which would else be taken for none."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and (is_split_name(path.name) or path.name in names.values()):
            raise ValueError(
                f"the split {path} is a link to {path.readlink()}, which is not there. Repair the link, or remove it."
            )


def _repeated(split: Path) -> Path:
    """The split's folder, or the only one in it where that is called as the split is, as in `train/train/<class>/`."""
    below = [path for path in split.iterdir() if path.is_dir() and not is_not_data(path.name)]
    alike = len(below) == 1 and below[0].name.lower() == split.name.lower()
    return below[0] if alike and not any(map(_is_image, split.iterdir())) else split


def _unlabelled(below: Mapping[str, Path], names: Mapping[str, str | None]) -> list[str]:
    """Folders named as the validation or test split that hold images of no class."""
    named = {find_name(below, ours, names) for ours in ("validation", "test")}
    found = [name for name in below if name in named or looks_like_test(name)]
    return [name for name in found if not _has_folders(below[name])]


def _is_unsplit(below: Mapping[str, Path], names: Mapping[str, str | None], unlabelled: list[str]) -> bool:
    if names["train"] != "train":  # named on purpose
        return False
    splits = [name for name in below if is_split_name(name) and name not in unlabelled]
    if splits == [find_name(below, "train", names)] and not _has_folders(below[splits[0]]):
        # Images of trains, beside those of cars: a training split would have class folders.
        others = [path for name, path in below.items() if name not in (*splits, *unlabelled)]
        return any(_is_image(file) for path in others for file in path.iterdir())
    return not splits and not any(looks_like_training(name) and _has_folders(path) for name, path in below.items())


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() and not is_not_data(path.name) for path in folder.iterdir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in image_extensions()


def _unsplit(folder: Path, unlabelled: list[str]) -> Listings:
    found = read_class_folders(folder, "only", skip=unlabelled)
    _check_no_splits_within(found)
    listings = _as_listings(
        folder, {"train": found}, {f"the folder {name!r}": count_files(folder / name) for name in unlabelled}
    )
    return listings.as_unsplit()


def _check_no_splits_within(found: ClassFolders) -> None:
    """Refuse `<class>/train/` and `<class>/test/`: their test images would be trained on."""
    within = [(name, *sorted(filter(is_split_name, below))) for name, below in found.subfolders().items()]
    if not within or any(len(splits) < 2 for _, *splits in within):
        return
    name, *splits = within[0]
    raise ValueError(
        f"{found.folder} has splits within its class folders, {name}/{splits[0]} and {name}/{splits[1]} among them, where "
        "none is looked for. Put the class folders into those of the splits: train/<class>/, test/<class>/."
    )


def _check_are_classes(found: ClassFolders) -> None:
    """Refuse folders that hold the parts of a dataset, and a single folder around those of the classes."""
    if len(found.files) > 1 and are_parts(found.files):
        raise ValueError(
            f"the folders in {found.folder} are {', '.join(map(repr, sorted(found.files)))}: parts of a dataset are called "
            "so, and no classes. Give a folder with one folder for each class, or a metadata.csv with the columns "
            "file_name and label."
        )
    if len(found.files) == 1:
        (paths,) = found.files.values()
        around = os.path.commonpath(paths)
        below = {os.path.relpath(os.path.dirname(path), around).split(os.sep)[0] for path in paths}
        if len(below) > 1 and os.curdir not in below:
            raise ValueError(
                f"all images of {found.folder} are of one class, {next(iter(found.files))!r}, and a classifier needs two or "
                f"more. If the {len(below):,} folders in {around} ({', '.join(sorted(below)[:3])}, ...) are the classes, "
                f"let them lie directly in {found.folder}, or in a dataset's folder of their own."
            )


def _as_listings(folder: Path, found: Mapping[str, ClassFolders], others: Mapping[str, int]) -> Listings:
    classes = _class_names(folder, found)
    index = {name: position for position, name in enumerate(classes)}
    listings: dict[str, Listing | None] = {"validation": None, "test": None}
    left_out, notes = {}, []
    for split, images in found.items():
        for path in images.loose:
            images.left_out.add("images in no class folder", path)
        images.left_out.log(split, folder)
        left_out[split] = images.left_out.counts
        if images.files:
            rows = images.in_order()
            listings[split] = Listing(
                [{"bytes": None, "path": path} for path, _ in rows], [index[name] for _, name in rows]
            )
        elif images.loose and split != "train":
            notes.append(
                f"the {len(images.loose):,} images of the {split} split lie in no class folder, so they have no labels"
            )
        else:
            loose = f": its {len(images.loose):,} images lie in no class folder" if images.loose else ""
            raise ValueError(
                f"the {split} split of {folder} is empty{loose}. Give at least one labelled image, in a folder named as "
                "its class."
            )
    notes += [f"{name} is no split and was not read ({count:,} files)" for name, count in others.items()]
    return Listings(
        *(listings[split] for split in ("train", "validation", "test")),
        label_names=classes,
        source=str(folder),
        left_out=left_out,
        notes=tuple(notes),
    )


def _class_names(folder: Path, found: Mapping[str, ClassFolders]) -> tuple[str, ...]:
    """The class folders of the training split; those of others must be among them, as a misspelt one is not."""
    _check_are_classes(found["train"])
    train = set(found["train"].files)
    for split, images in found.items():
        if extra := sorted(set(images.files) - train):
            raise ValueError(
                f"the {split} split of {folder} has the class folder {extra[0]!r}, which the training images lack."
                f"{look_alike(extra[0], train)} Name the class folders of all splits alike."
            )
    return tuple(sorted(train))


def _not_read(folder: Path, picked: Mapping[str, Path]) -> dict[str, int]:
    """Number of files of the folders that are no split, and of the images directly in the dataset's folder."""
    below = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    others = [path for path in below if path.is_dir() and path not in picked.values()]
    counts = {f"the folder {path.name!r}": count_files(path) for path in others}
    counts["what lies beside the splits' folders"] = sum(path.suffix.lower() in image_extensions() for path in below)
    return {name: count for name, count in counts.items() if count}
