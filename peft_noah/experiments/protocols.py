"""The paper's protocols as data: VTAB-1k, few-shot and domain generalisation.

Names, groups, classes and sizes are those of Table 1 and Table 4 of arXiv 2206.04673, tasks in their order. Folders may
be named as either convention that circulates has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from peft_noah.data.listings import check_shots
from peft_noah.experiments.task_folders import folders_by_task
from peft_noah.experiments.tasks import Task

SHOTS = (1, 2, 4, 8, 16)
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


#: by task or set, the names that its folder may have
VTAB_NAMES = {row[0]: row[-1] for row in _VTAB}
FEW_SHOT_NAMES = {row[0]: row[4] for row in _FEW_SHOT}
DOMAIN_NAMES = {"imagenet": ("imagenet",), **{row[0]: row[-1] for row in _DOMAINS}}


def vtab_tasks(root: str | os.PathLike[str], names: Sequence[str] | None = None) -> tuple[Task, ...]:
    """VTAB-1k's tasks in the paper's order: 800 training, 200 validation images, the original test set.

    Args:
        root: folder with one folder per task, in lists or parquet; or the Hub id of a dataset with one config per task.
        names: which tasks, by any of their names; None: all 19.

    Raises:
        ValueError: a task has no folder, or two; or a name is unknown.
    """
    folders = folders_by_task(root, VTAB_NAMES, names, "VTAB-1k")
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
    folders = folders_by_task(root, FEW_SHOT_NAMES, names, "the few-shot datasets")
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
    what, others = "domain generalisation", [name for name in DOMAIN_NAMES if name != "imagenet"]
    imagenet = folders_by_task(root, DOMAIN_NAMES, ["imagenet"], what)["imagenet"]
    if other_tests is None:
        other_tests = folders_by_task(root, DOMAIN_NAMES, others, what)
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
