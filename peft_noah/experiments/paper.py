"""What the paper reports in its Table 1, beside which one's own results may stand."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from peft_noah.jsonfile import read_json

VTAB_GROUPS = ("Natural", "Specialized", "Structured")


def published_rows() -> dict[str, dict[str, float]]:
    """Test accuracy on VTAB-1k, a share from 0 to 1, by method and task in the paper's order.

    Source: Table 1 of arXiv 2206.04673, ViT-B/16 pretrained on ImageNet-21k. Seeds and errors are not given there.
    """
    paper = _paper()
    names = [task["name"] for task in paper["tasks"]]
    return {
        method: {name: value / 100 for name, value in zip(names, values, strict=True)}
        for method, values in paper["accuracy"].items()
    }


def published_parameters() -> dict[str, int]:
    """Prompt parameters by method as the same table gives them, rounded to 0.01 M; for linear, the classifier's."""
    return dict(_paper()["parameters"])


def published_groups() -> dict[str, str]:
    """The group of each VTAB-1k task, in the paper's order of tasks."""
    return {task["name"]: task["group"] for task in _paper()["tasks"]}


def vtab_name(name: str) -> str | None:
    """A VTAB-1k task as the paper's Table 1 is keyed, from its own name or that of its published architecture.

    Returns:
        The name; None for any other task.

    Examples:
        >>> vtab_name("vtab/oxford_pet"), vtab_name("cifar100"), vtab_name("mine")
        ('pets', 'cifar100', None)
    """
    return _names().get(name)


@cache
def _names() -> dict[str, str]:
    return {key: task["name"] for task in _paper()["tasks"] for key in (task["name"], task["architecture"])}


@cache
def _paper() -> dict:
    return read_json(Path(__file__).parents[1] / "assets" / "paper_table1.json")
