"""Figures: what is in them, that all of it can be read, and that equal results give equal files."""

from __future__ import annotations

import random
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import matplotlib.colors
import pytest
from figure_checks import assert_readable
from PIL import Image

from peft_noah.architecture import Architecture
from peft_noah.results.plotting import plot_architecture, plot_mean_architecture, plot_search
from peft_noah.search_space import SearchSpace
from peft_noah.searching.evolution import search
from peft_noah.searching.result import Candidate, SearchResult, SearchSettings

MIX = Architecture(lora=[8, 0, 4], adapter=[0, 5, 0], ssf=[1, 1, 0])


def count(architecture: Architecture) -> int:
    return 1000 * sum(map(sum, architecture.values()))


def run_search(budget: int = 40_000, scale: float = 1.0) -> SearchResult:
    rng = random.Random(0)
    settings = SearchSettings(population_size=10, generations=4, num_parents=3, num_crossover=3, num_mutation=3)
    space = SearchSpace.vtab(4, modules=("lora", "vpt"))
    return search(space, lambda architecture: scale * rng.random(), count, budget, settings, seed=1)


def make_result(*scores: float | None) -> SearchResult:
    space = SearchSpace(2, {"lora": [1, 5]}, {"lora": [2]})
    candidates = [
        Candidate(Architecture(lora=[1, 5]), 1000 * (index + 1), score, index // 3, "random")
        for index, score in enumerate(scores)
    ]
    return SearchResult(SearchSettings(), space, budget=5_000, seed=0, candidates=candidates)


def cells(axes) -> dict[tuple[int, int], str]:
    """What is printed in the cells of a panel, by row and block."""
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}


def labels(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


DRAWINGS = {
    "mix": lambda path: plot_architecture(MIX, path, title="found for fashion_mnist", parameters=12_345),
    "published": lambda path: plot_architecture(Architecture.published("few_shot/food101_16"), path),
    "one block": lambda path: plot_architecture(Architecture(lora=[3]), path, title="a very long title " * 12),
    "wide dims": lambda path: plot_architecture(Architecture(lora=[65_536] * 24, ssf=[1] * 24), path),
    "64 blocks": lambda path: plot_architecture(Architecture(vpt=[100] * 64), path),
    "many blocks": lambda path: plot_architecture(Architecture(vpt=[100] * 400), path),
    "nothing": lambda path: plot_architecture(Architecture(vpt=[0, 0]), path),
    "mean": lambda path: plot_mean_architecture({"Natural": [MIX, MIX], "Structured": [MIX]}, path),
    "search": lambda path: plot_search(run_search(), path),
    "loose budget": lambda path: plot_search(run_search(budget=10**9, scale=-1e4), path),
    "50 generations": lambda path: plot_search(make_result(*[0.5] * 150), path),
    "one candidate": lambda path: plot_search(make_result(0.5), path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_cut_tiny_or_covered_by_another(name, figures, tmp_path):
    DRAWINGS[name](tmp_path / "figure.png")
    (figure,) = figures
    assert_readable(figure)


@pytest.mark.parametrize("name", ["mix", "published", "wide dims", "mean"])
def test_printed_dims_fit_their_cells_and_stand_out(name, figures, tmp_path):
    DRAWINGS[name](tmp_path / "figure.png")
    figures[0].draw_without_rendering()
    for axes in figures[0].axes:
        shades = axes.images[0].get_array()
        width = axes.bbox.width / shades.shape[1]
        for text in axes.texts:
            block, row = (int(at) for at in text.get_position())
            assert text.get_window_extent().width < 0.9 * width
            assert contrast(matplotlib.colors.to_rgb(text.get_color()), shades[row, block]) >= 4.5


def contrast(*colors) -> float:
    """WCAG 2.1: (lighter + 0.05) / (darker + 0.05) of the relative luminances."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color] for color in colors]
    dark, light = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (light + 0.05) / (dark + 0.05)


def test_every_dim_is_printed_in_its_cell_and_absent_ones_are_blank(figures, tmp_path):
    plot_architecture(MIX, tmp_path / "figure.png", title="a", parameters=12_345)
    (axes,) = figures[0].axes
    assert labels(axes) == ["LoRA (rank)", "Adapter (width)", "SSF (on)"]
    assert cells(axes) == {(0, 0): "8", (0, 2): "4", (1, 1): "5", (2, 0): "1", (2, 1): "1"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert axes.get_xlabel() == "block (1 = nearest the input)"
    assert axes.get_title(loc="left") == "a  ·  12,345 prompt parameters"


def test_a_larger_dim_is_darker_on_one_scale_for_all_modules(figures, tmp_path):
    plot_architecture(Architecture(lora=[0, 1, 5, 10], vpt=[10, 5, 1, 0]), tmp_path / "figure.png")
    lora, vpt = figures[0].axes[0].images[0].get_array().sum(axis=-1)
    assert list(lora) == sorted(lora, reverse=True) and len(set(lora)) == 4
    assert list(vpt) == sorted(vpt) and len(set(vpt)) == 4
    plot_architecture(Architecture(lora=[10, 10], vpt=[1, 1]), tmp_path / "figure.png")
    assert figures[1].axes[0].images[0].get_array()[1, 0].sum() == pytest.approx(vpt[2])


def test_a_module_keeps_its_colour_when_others_are_away(figures, tmp_path):
    plot_architecture(Architecture(lora=[1], adapter=[1], vpt=[1]), tmp_path / "figure.png")
    plot_architecture(Architecture(vpt=[1]), tmp_path / "figure.png")
    first, second = (figure.axes[0].images[0].get_array() for figure in figures)
    assert list(first[2, 0]) == list(second[0, 0])
    assert len({tuple(color) for color in first[:, 0]}) == 3


def test_the_mean_figure_averages_block_by_block_in_each_group(figures, tmp_path):
    a, b = Architecture(lora=[10, 5, 0], vpt=[1, 0, 0]), Architecture(vpt=[10, 0, 0], lora=[5, 5, 0])
    plot_mean_architecture({"Natural": [a, b], "one": [a]}, tmp_path / "figure.png")
    first, second = figures[0].axes
    assert cells(first) == {(0, 0): "7.5", (0, 1): "5.0", (1, 0): "5.5"}
    assert cells(second) == {(0, 0): "10.0", (0, 1): "5.0", (1, 0): "1.0"}
    assert first.get_title(loc="left") == "Natural  ·  mean of 2 architectures"
    assert second.get_title(loc="left") == "one  ·  1 architecture"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "no architectures to draw: give"),
        ({"a": [MIX], "b": []}, "no architectures to draw in 'b'"),
        ({"a": [MIX], "b": [Architecture(lora=[1, 1, 1])]}, "cannot average .* of 3 blocks with lora"),
        ({"a": [Architecture(lora=[1]), Architecture(lora=[1, 1])]}, "of 1 blocks with lora and of 2 blocks"),
    ],
)
def test_architectures_that_do_not_match_are_not_averaged(groups, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_mean_architecture(groups, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_every_scored_candidate_is_a_dot_in_both_panels(figures, tmp_path):
    result = run_search()
    plot_search(result, tmp_path / "figure.png")
    left, right = figures[0].axes
    for origin in ("random", "crossover", "mutation"):
        chosen = [candidate for candidate in result.candidates if candidate.origin == origin]
        assert chosen
        for axes in (left, right):
            (dots,) = [dots for dots in axes.collections if dots.get_label() == origin]
            heights = dots.get_offsets()[:, 1]
            assert list(heights) == pytest.approx([100 * candidate.score for candidate in chosen])
            across = dots.get_offsets()[:, 0]
            if axes is right:
                assert list(across) == pytest.approx([candidate.parameters / 1000 for candidate in chosen])
            else:
                assert [round(place) for place in across] == [candidate.generation for candidate in chosen]
    assert left.get_xlabel() == "generation"
    assert left.get_ylabel() == "validation accuracy (%)"
    assert right.get_xlabel() == "prompt parameters (thousand)"


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_best_so_far_rises_and_the_best_and_the_budget_are_marked(figures, tmp_path):
    plot_search(make_result(0.2, None, 0.1, 0.6, 0.6, 0.3), tmp_path / "figure.png")
    left, right = map(lines, figures[0].axes)
    assert left["best so far"][1] == pytest.approx([20, 20, 60, 60, 60])
    assert [line.get_drawstyle() for line in figures[0].axes[0].lines if line.get_label() == "best so far"] == [
        "steps-post"
    ]
    # Of the two at 60 % the one with fewer parameters is the best; the one without a score keeps its place.
    assert left["best: 60.0 %, 4,000 parameters"] == ([pytest.approx(1 - 0.7 / 3)], [60])
    assert right["best: 60.0 %, 4,000 parameters"] == ([4.0], [60])
    assert right["budget: 5,000 parameters"][0] == [5.0, 5.0]


def test_a_budget_far_beyond_all_candidates_does_not_press_them_together(figures, tmp_path):
    result = make_result(0.2, 0.3)
    result.budget = 10**9
    plot_search(result, tmp_path / "figure.png")
    right = figures[0].axes[1]
    assert "budget: 1,000,000,000 parameters, beyond the axis" in lines(right)
    assert right.get_xlim()[1] < 3


def test_scores_that_are_no_accuracies_are_shown_as_they_are(figures, tmp_path):
    plot_search(make_result(-3.0, 12.5), tmp_path / "figure.png")
    left = figures[0].axes[0]
    assert left.get_ylabel() == "score (no unit)"
    assert lines(left)["best: 12.5, 2,000 parameters"][1] == [12.5]


@pytest.mark.parametrize("scores", [(), (None, None)])
def test_a_search_without_a_score_cannot_be_drawn(scores, tmp_path):
    with pytest.raises(ValueError, match="none of the . candidates of this search has a score"):
        plot_search(make_result(*scores), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("name", ["mix", "mean", "search"])
def test_the_same_results_give_the_same_bytes_whatever_matplotlib_is_set_to(name, suffix, tmp_path):
    DRAWINGS[name](tmp_path / f"first{suffix}")
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "text.color": "red", "svg.fonttype": "none"}):
        before = dict(matplotlib.rcParams)
        DRAWINGS[name](tmp_path / f"second{suffix}")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_equal_architectures_give_equal_figures(tmp_path):
    plot_architecture(Architecture(lora=[1], vpt=[2], ssf=[3]), tmp_path / "a.png")
    plot_architecture(Architecture(ssf=[3], vpt=[2], lora=[1]), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_png_has_150_dots_per_inch_and_an_svg_is_xml_without_a_date(tmp_path):
    plot_architecture(MIX, tmp_path / "figure.PNG")
    with Image.open(tmp_path / "figure.PNG") as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.02)  # PNG counts dots per metre, whole ones
    plot_architecture(MIX, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "dc:date" not in text


def test_a_title_is_shown_literally(figures, tmp_path):
    plot_architecture(MIX, tmp_path / "figure.png", title="$\\frac{ \n<b>")
    assert figures[0].axes[0].get_title(loc="left") == "$\\frac{ <b>"


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "png"])
def test_other_formats_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"ends in .png or .svg"):
        plot_architecture(MIX, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        plot_architecture(MIX, tmp_path / "missing" / "figure.png")


def test_pyplot_is_never_touched(monkeypatch, tmp_path):
    # None in this place makes an import of it fail.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plot_architecture(MIX, tmp_path / "figure.png")
    plot_search(run_search(), tmp_path / "figure.png")


def test_a_link_where_the_figure_goes_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "outside")
    plot_architecture(Architecture(lora=[1, 2]), tmp_path / "a.png")
    assert (tmp_path / "outside").read_text() == "mine" and not (tmp_path / "a.png").is_symlink()
