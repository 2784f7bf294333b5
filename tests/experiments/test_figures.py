"""Figures of a suite: what stands in them, and that all of it can be read."""

from __future__ import annotations

import pytest
from cell_files import make_cell
from figure_checks import assert_readable
from test_analysis import SEARCH

from peft_noah.experiments.analysis import shared_by_best
from peft_noah.experiments.figures import (
    plot_architectures,
    plot_best,
    plot_few_shot,
    plot_groups,
    plot_published_architectures,
    plot_transfer,
    published_architectures,
)
from peft_noah.run.registry import all_methods

METHODS = [method.name for method in all_methods()]
ROWS = {"lora": [1, 5, 0], "vpt": [10, 10, 10]}
GROUPS = {"cifar100": "Natural", "eurosat": "Specialized", "dmlab": "Structured"}
STANDARD = [
    make_cell(task, method, seed, 0.5 + 0.03 * place + 0.01 * seed, group=group, architecture=ROWS)
    for task, group in GROUPS.items()
    for place, method in enumerate((*METHODS, "a method with a name that is rather long"))
    for seed in range(2)
]
FEW_SHOT = [
    make_cell(task, method, seed, 0.4 + 0.1 * shots**0.5 + 0.01 * seed, shots=shots, architecture=ROWS)
    for task in ("food101", "fgvc_aircraft", "$\\frac{ <b> a task with a long name " + "x" * 60)
    for method in ("lora", "noah retrained")
    for shots in (1, 2, 16)
    for seed in range(2)
]
TRANSFERS = [
    *STANDARD,
    *(
        make_cell(task, f"transfer {source}", seed, 0.6 + 0.02 * seed, group=GROUPS[task])
        for task in ("cifar100", "dmlab")
        for source in ("dmlab", "eurosat", "runs/a folder with a long name/search.json of some other machine")
        for seed in range(2)
        if source != task
    ),
]
DRAWINGS = {
    "groups": lambda path: plot_groups(STANDARD, path),
    "few-shot": lambda path: plot_few_shot(FEW_SHOT, path),
    "transfer": lambda path: plot_transfer(TRANSFERS, path),
    "architectures": lambda path: plot_architectures(STANDARD, path),
    "best": lambda path: plot_best(shared_by_best(SEARCH, 2), path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_all_text_can_be_read(name, figures, tmp_path):
    DRAWINGS[name](tmp_path / "figure.png")
    assert_readable(figures[0])


def points(axes) -> dict[str, list[tuple[float, float]]]:
    """Height and length of the error bar of every point, by method."""
    found = {}
    for drawn in axes.containers:
        heights = drawn.lines[0].get_ydata()
        bars = [(segment[1][1] - segment[0][1]) / 2 for segment in drawn.lines[2][0].get_segments()]
        found.setdefault(drawn.get_label(), []).extend(zip(heights, bars, strict=True))
    return found


def test_the_panels_of_fig_3_hold_group_means_with_their_errors(figures, tmp_path):
    cells = [make_cell("cifar100", "lora", seed, test, group="Natural") for seed, test in ((0, 0.5), (1, 0.6))]
    cells += [make_cell("dmlab", "lora", seed, test, group="Structured") for seed, test in ((0, 0.3), (1, 0.3))]
    cells += [make_cell("dmlab", "vpt", 0, 0.2, group="Structured")]
    plot_groups(cells, tmp_path / "figure.png")
    panels = {axes.get_title(loc="left"): points(axes) for axes in figures[0].axes}
    assert panels["Natural mean (1)"] == {"lora": [(pytest.approx(55), pytest.approx(5))]}
    assert panels["mean of group means"] == {"lora": [(pytest.approx(42.5), pytest.approx(2.5))]}
    assert panels["Structured mean (1)"]["vpt"][0][0] == pytest.approx(20)
    assert "vpt" not in panels["plain mean (2)"]


def test_the_panels_of_fig_4_are_the_tasks_and_their_mean(figures, tmp_path):
    plot_few_shot(FEW_SHOT, tmp_path / "figure.png")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert len(panels) == 4
    assert panels[-1].get_title(loc="left") == "mean of 3 tasks"
    assert [height for height, _ in points(panels[-1])["lora"]] == pytest.approx([50.5, 40.5 + 10 * 2**0.5, 80.5])
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "2", "16"]


def test_the_published_architectures_are_drawn_by_group_without_training(figures, tmp_path):
    plot_published_architectures(tmp_path / "vtab.png")
    titles = [axes.get_title(loc="left").replace("  ·  ", ": ") for axes in figures[0].axes]
    assert titles == [
        "Natural: mean of 7 architectures",
        "Specialized: mean of 4 architectures",
        "Structured: mean of 8 architectures",
        "All tasks: mean of 19 architectures",
    ]
    # LoRA in block 1 of the four specialized tasks: 10 (eurosat), and whatever the other three have.
    specialized = published_architectures("vtab")["Specialized"]
    mean = sum(architecture["lora"][0] for architecture in specialized) / 4
    assert f"{mean:.1f}" in [text.get_text() for text in figures[0].axes[1].texts if text.get_position() == (0, 0)]


def test_the_published_few_shot_architectures_are_grouped_by_shots():
    sizes = {name: len(group) for name, group in published_architectures("few_shot").items()}
    assert sizes == {"1 shot": 5, "2 shots": 5, "4 shots": 5, "8 shots": 5, "16 shots": 6, "All tasks": 26}
    with pytest.raises(ValueError, match="protocol 'dg'"):
        published_architectures("dg")


def test_one_architecture_counts_once_for_inherited_and_retrained(figures, tmp_path):
    plot_architectures(STANDARD, tmp_path / "figure.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    # Two seeds of one task in each group.
    assert titles[0] == "Natural  ·  mean of 2 architectures" and titles[-1] == "All tasks  ·  mean of 6 architectures"


def test_the_cells_of_fig_6_hold_signed_differences(figures, tmp_path):
    cells = [make_cell("cifar100", "noah retrained", test=0.6), make_cell("cifar100", "transfer dmlab", test=0.625)]
    plot_transfer(cells, tmp_path / "figure.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["+2.5"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (plot_groups, "no method has been run on all tasks"),
        (plot_few_shot, "no few-shot cells"),
        (plot_architectures, "no cell of NOAH has an architecture"),
        (plot_transfer, "no transfer has its task's own search"),
    ],
)
def test_cells_that_have_nothing_to_draw_are_refused_and_no_file_is_left(draw, message, tmp_path):
    cells = [make_cell("a", "lora", group="x"), make_cell("b", "vpt", group="x")]
    with pytest.raises(ValueError, match=message):
        draw(cells, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
