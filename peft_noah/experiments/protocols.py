"""The paper's protocols as data: VTAB-1k, few-shot and domain generalisation, and any folder of tasks.

Names, groups, classes and sizes are those of Table 1 and Table 4 of arXiv 2206.04673, tasks in their order. Folders may
be named as either convention that circulates has them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft_noah.data.class_folders import is_not_data, is_of_a_run
from peft_noah.data.list_files import find_lists
from peft_noah.data.listings import check_shots
from peft_noah.data.parquet_folders import parquet_configs
from peft_noah.data.table_files import hub_configs, is_hub_id, is_saved_to_disk
from peft_noah.experiments.tasks import Task
from peft_noah.jsonfile import read_json

logger = logging.getLogger(__name__)

SHOTS = (1, 2, 4, 8, 16)
#: groups of a folder of tasks, in the folder itself
GROUPS_FILE = "tasks.json"

#: VTAB-1k: task, group, classes, test images, names of its folder
_VTAB = (
    ("cifar100", "Natural", 100, 10_000, ("cifar100", "cifar", "cifar_100")),
    ("caltech101", "Natural", 102, 6_084, ("caltech101", "caltech_101")),
    ("dtd", "Natural", 47, 1_880, ("dtd",)),
    ("flowers102", "Natural", 102, 6_149, ("oxford_flowers102", "flowers102", "oxford_flowers", "flowers")),
    ("pets", "Natural", 37, 3_669, ("oxford_pet", "oxford_iiit_pet", "pets", "oxford_pets", "pet")),
    ("svhn", "Natural", 10, 26_032, ("svhn", "svhn_cropped")),
    ("sun397", "Natural", 397, 21_750, ("sun397",)),
    ("camelyon", "Specialized", 2, 32_768, ("patch_camelyon", "camelyon", "pcam")),
    ("eurosat", "Specialized", 10, 5_400, ("eurosat",)),
    ("resisc45", "Specialized", 45, 6_300, ("resisc45",)),
    (
        "retinopathy",
        "Specialized",
        5,
        42_670,
        ("diabetic_retinopathy", "retinopathy", "diabetic_retinopathy_detection"),
    ),
    ("clevr_count", "Structured", 8, 15_000, ("clevr_count", "clevr_count_all")),
    ("clevr_dist", "Structured", 6, 15_000, ("clevr_dist", "clevr_distance", "clevr_closest_object_distance")),
    ("dmlab", "Structured", 6, 22_735, ("dmlab",)),
    ("kitti", "Structured", 4, 711, ("kitti", "kitti_dist", "kitti_closest_vehicle_distance")),
    (
        "dspr_loc",
        "Structured",
        16,
        73_728,
        ("dsprites_loc", "dspr_loc", "dsprites_location", "dsprites_label_x_position"),
    ),
    (
        "dspr_ori",
        "Structured",
        16,
        73_728,
        ("dsprites_ori", "dspr_ori", "dsprites_orientation", "dsprites_label_orientation"),
    ),
    (
        "snorb_azim",
        "Structured",
        18,
        12_150,
        ("smallnorb_azi", "snorb_azim", "smallnorb_azimuth", "smallnorb_label_azimuth"),
    ),
    (
        "snorb_ele",
        "Structured",
        18,
        12_150,
        ("smallnorb_ele", "snorb_ele", "snorb_elev", "smallnorb_elevation", "smallnorb_label_elevation"),
    ),
)
#: what is not JPEG in the original; JPEG copies of them circulate
_LOSSLESS = frozenset(
    "cifar100 svhn camelyon clevr_count clevr_dist kitti dspr_loc dspr_ori snorb_azim snorb_ele".split()
)
#: Table 4 prints 18 classes for SmallNORB's elevation; the data has nine elevations
_OTHER_NUM_CLASSES = {"snorb_ele": (9,)}

#: few-shot: task, classes, validation images, test images, names of its folder (the authors misspell one), and what
#: the authors' architectures are named by
_FEW_SHOT = (
    ("food101", 101, 20_200, 30_300, ("food101", "food_101"), "food101"),
    ("stanford_cars", 196, 1_635, 8_041, ("stanford_cars", "standford_cars", "cars"), "stanford_cars"),
    ("flowers102", 102, 1_633, 2_463, ("oxford_flowers102", "oxford_flowers", "flowers102"), "oxford_flowers"),
    ("fgvc_aircraft", 100, 3_333, 3_333, ("fgvc_aircraft", "aircraft"), "fgvc_aircraft"),
    ("pets", 37, 736, 3_669, ("oxford_pets", "oxford_pet", "oxford_iiit_pet", "pets"), "oxford_pets"),
)

#: domain generalisation: further test set, images, names of its folder
_DOMAINS = (
    ("v2", 10_000, ("imagenetv2", "imagenet_v2", "imagenetv2_matched_frequency_format_val")),
    ("sketch", 50_889, ("imagenet_sketch", "sketch")),
    ("a", 7_500, ("imagenet_adversarial", "imagenet_a")),
    ("r", 30_000, ("imagenet_rendition", "imagenet_r")),
)


def vtab_tasks(root: str | os.PathLike[str], names: Sequence[str] | None = None) -> tuple[Task, ...]:
    """VTAB-1k's tasks in the paper's order: 800 training, 200 validation images, the original test set.

    Args:
        root: folder with one folder per task, in lists or parquet; or the Hub id of a dataset with one config per task.
        names: which tasks, by any of their names; None: all 19.

    Raises:
        ValueError: a task has no folder, or two; or a name is unknown.
    """
    folders = _folders_by_task(root, {row[0]: row[-1] for row in _VTAB}, names, "VTAB-1k")
    return tuple(
        Task(
            name,
            folders[name],
            group,
            num_classes,
            _OTHER_NUM_CLASSES.get(name, ()),
            {"train": 800, "validation": 200, "test": test},
            lossless=name in _LOSSLESS,
            published=f"vtab/{aliases[0]}",
        )
        for name, group, num_classes, test, aliases in _VTAB
        if name in folders
    )


def few_shot_tasks(
    root: str | os.PathLike[str], shots: Iterable[int] = SHOTS, names: Sequence[str] | None = None
) -> tuple[Task, ...]:
    """The paper's few-shot tasks, one per dataset and number of shots, with augmented training images.

    Args:
        root: folder with one folder per dataset, in the lists of the NOAH authors or of CoOp, or anything labelled.
        shots: training images per class, one task each.
        names: which datasets, by any of their names; None: all five.

    Raises:
        ValueError: a dataset has no folder, or two; a name is unknown; or a number of shots is below 1.
    """
    shots = tuple(shots)
    for count in shots:
        check_shots(count)
    folders = _folders_by_task(root, {row[0]: row[4] for row in _FEW_SHOT}, names, "the few-shot datasets")
    return tuple(
        Task(
            name,
            folders[name],
            "",
            num_classes,
            sizes={"train": count * num_classes, "validation": validation, "test": test},
            shots=count,
            augment=True,
            search_space="few_shot",
            published=f"few_shot/{theirs}_{count}" if count in SHOTS else None,
        )
        for name, num_classes, validation, test, _, theirs in _FEW_SHOT
        if name in folders
        for count in shots
    )


def domain_tasks(
    root: str | os.PathLike[str], other_tests: Mapping[str, str | os.PathLike[str]] | None = None
) -> tuple[Task, ...]:
    """Domain generalisation: train on ImageNet at 16 shots, test on it and on V2, Sketch, A and R.

    A and R have 200 of the 1,000 classes and are scored among them; the authors' code scores among 1,000.

    Args:
        root: folder with `imagenet` and one folder per further test set.
        other_tests: the further test sets by name (`v2`, `sketch`, `a`, `r`), where they lie elsewhere.

    Raises:
        ValueError: ImageNet or a further test set has no folder, or two.
    """
    imagenet = _folders_by_task(root, {"imagenet": ("imagenet",)}, None, "domain generalisation")["imagenet"]
    if other_tests is None:
        other_tests = _folders_by_task(root, {row[0]: row[-1] for row in _DOMAINS}, None, "domain generalisation")
    sizes = {f"test {name}": size for name, size, _ in _DOMAINS if name in other_tests}
    task = Task(
        "imagenet",
        imagenet,
        "",
        1_000,
        sizes={"train": 16_000, "test": 50_000, **sizes},
        shots=16,
        other_tests={name: str(folder) for name, folder in other_tests.items()},
        augment=True,
        search_space="few_shot",
        published="few_shot/imagenet_16",
    )
    return (task,)


def task_folder(root: str | os.PathLike[str], groups: Mapping[str, str] | None = None) -> tuple[Task, ...]:
    """Any folder of tasks, one folder each, of whatever classes and sizes.

    Args:
        root: folder of the tasks; or the Hub id of a dataset with one config per task.
        groups: the group of each task, in which order tasks come; None: from `tasks.json` in the folder, an object of
            group by task; where that is missing too, tasks have no group and come by name.

    Raises:
        ValueError: there is no task, a grouped one has no folder, or one has no group while others have.
    """
    folders = _sources(root)
    if groups is None and (Path(root).expanduser() / GROUPS_FILE).is_file():
        groups = read_groups(Path(root).expanduser() / GROUPS_FILE)
    groups = dict.fromkeys(folders, "") if groups is None else groups
    for missing in [name for name in groups if name not in folders]:
        raise ValueError(f"{root} has no task {missing!r}, which has a group; it has {', '.join(folders)}.")
    for missing in [name for name in folders if name not in groups]:
        raise ValueError(f"task {missing!r} of {root} has no group. Add it to the groups, or leave all out.")
    return tuple(Task(name, folders[name], group) for name, group in groups.items())


def read_groups(path: str | os.PathLike[str]) -> dict[str, str]:
    """The groups of tasks from a JSON file, an object of group by task.

    Raises:
        ValueError: the file cannot be read or is something else.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(group, str) for group in data.values()):
        raise ValueError(f'{path} holds no groups: expected an object like {{"task": "group", ...}}.')
    return data


def detect_tasks(
    root: str | os.PathLike[str], groups: Mapping[str, str] | None = None, shots: Iterable[int] = SHOTS
) -> tuple[Task, ...]:
    """The tasks of a folder, by what its folders are called: VTAB-1k, few-shot, domain generalisation, or a user's own.

    Where some of a benchmark's tasks are missing, a warning names them, and the others are taken.

    Args:
        root: folder of the tasks; or the Hub id of a dataset with one config per task.
        groups: as for `task_folder`; where given, the tasks are the user's own, whatever they are called.
        shots: as for `few_shot_tasks`.

    Raises:
        ValueError: there is no task in the folder.
    """
    sources = _sources(root)
    names = set(map(_plain, sources))
    if groups is None and not (Path(root).expanduser() / GROUPS_FILE).exists():
        vtab, few_shot = {row[0]: row[-1] for row in _VTAB}, {row[0]: row[4] for row in _FEW_SHOT}
        domains = {"imagenet": ("imagenet",), **{row[0]: row[-1] for row in _DOMAINS}}
        if names <= _all(few_shot) and (not names <= _all(vtab) or any(map(_lists_shots, sources.values()))):
            return few_shot_tasks(root, shots, _present(few_shot, names, root, "the few-shot datasets"))
        if names <= _all(vtab):
            return vtab_tasks(root, _present(vtab, names, root, "VTAB-1k's tasks"))
        if "imagenet" in names and names <= _all(domains):
            there = _present(domains, names, root, "the sets of domain generalisation")
            tests = _folders_by_task(root, domains, there, "domain generalisation")
            return domain_tasks(root, {name: tests[name] for name in there if name != "imagenet"})
    return task_folder(root, groups)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _all(aliases: Mapping[str, Sequence[str]]) -> set[str]:
    return {alias for of_task in aliases.values() for alias in of_task}


def _present(aliases: Mapping[str, Sequence[str]], names: set[str], root: object, what: str) -> list[str]:
    there = [name for name, of_task in aliases.items() if names & set(of_task)]
    if missing := [name for name in aliases if name not in there]:
        logger.warning("%s: %d of %s are not there: %s", root, len(missing), what, ", ".join(missing))
    return there


def _lists_shots(source: str | Path) -> bool:
    folder = Path(source)
    return (folder / "annotations").is_dir() or any(folder.glob("split_*.json"))


def _sources(root: str | os.PathLike[str]) -> dict[str, str]:
    """The source of every task of a folder by its name; of a Hub dataset, of every config."""
    below, folder = _below(root), Path(root).expanduser()
    if not folder.is_dir():
        return below
    found = {name: source for name, source in below.items() if _is_task(Path(source))}
    if not found:
        hint = "It is a task itself: run it alone. " if _is_task(folder) else ""
        raise ValueError(f"{folder} holds no folder of a task. {hint}Give a folder with one folder per task.")
    if left := [name for name in below if name not in found]:
        logger.warning("%s: no task in %s, left out", folder, ", ".join(left))
    return found


def _below(root: str | os.PathLike[str]) -> dict[str, str]:
    """What may be a task in a folder, or in a Hub dataset with one config per task: its source by its name."""
    folder = Path(root).expanduser()
    if folder.is_dir():
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return {path.name: str(path) for path in below if not (is_not_data(path.name) or is_of_a_run(path))}
    if "/" in str(root) and is_hub_id(root):
        return {config: f"{root}:{config}" for config in hub_configs(str(root))}
    raise ValueError(f"there is no folder {str(root)!r}. Give a folder with one folder per task.")


def _is_task(folder: Path) -> bool:
    """Whether a folder looks like a task: parquet files, lists, or folders of images by split (or by class)."""
    if is_saved_to_disk(folder) or parquet_configs(folder)[0] or _lists_shots(folder):
        return True
    return bool(find_lists(folder)) or any(path.is_dir() for path in folder.iterdir())


def _folders_by_task(
    root: str | os.PathLike[str], aliases: Mapping[str, Sequence[str]], names: Sequence[str] | None, what: str
) -> dict[str, str]:
    """The source of each task that is wanted, found by any of its names."""
    wanted = list(aliases) if names is None else [_canonical(name, aliases, what) for name in names]
    found: dict[str, str] = {}
    for below, source in _below(root).items():
        for name in wanted:
            if _plain(below) not in aliases[name]:
                continue
            if name in found:
                raise ValueError(f"{root} has two folders for task {name!r}: {found[name]} and {source}.")
            found[name] = source
    if missing := [name for name in wanted if name not in found]:
        known = "; ".join(f"{name} (as {' or '.join(aliases[name])})" for name in missing)
        raise ValueError(f"{root} misses {len(missing)} of {len(wanted)} tasks of {what}: {known}. Add their folders.")
    return {name: found[name] for name in wanted}


def _canonical(name: str, aliases: Mapping[str, Sequence[str]], what: str) -> str:
    for task, of_task in aliases.items():
        if _plain(name) in (task, *of_task):
            return task
    raise ValueError(f"{name!r} is no task of {what}: known are {', '.join(aliases)}.")
