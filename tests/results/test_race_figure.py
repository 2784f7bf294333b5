"""The picture of a race: every design is there, and says what became of it."""

import random

import pytest
from figure_checks import assert_readable

from peft_noah.results.race_figure import plot_race
from peft_noah.searching.design import Design
from peft_noah.searching.race import Race, RaceSettings, Rung

STRENGTHS = {
    "LoRA on q, k": 0.0,
    "all sites": 0.15,
    "all sites, s = 4": 0.2,
    "tokens": -0.1,
    "mix": 0.12,
    "much too strong": -0.9,
}


def run(rungs=3, stop=None):
    settings = RaceSettings(rungs=(Rung(6, 0.06), Rung(3, 0.10), Rung(2, 0.14))[:rungs])
    race, rng = Race([Design(name, {"lora": 2}) for name in STRENGTHS], settings), random.Random(0)
    while (heats := race.ask()) and race.rung != stop:
        strength = list(STRENGTHS.values())[heats[0].design]
        scores = [float(rng.random() < 0.5 + 0.1 * heats[0].rung + strength) for _ in range(400)]
        race.tell(heats[0], scores, accuracy=sum(scores) / 400)
    return race


def test_every_design_is_drawn_with_what_became_of_it(figures, tmp_path):
    race = run()
    plot_race(race, tmp_path / "race.png")
    assert_readable(figures[0])
    (axes,) = figures[0].axes
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert [label.split(":")[0] for label in labels] == list(STRENGTHS)
    assert labels[race.winner] == "all sites, s = 4: won"
    assert labels[5] == "much too strong: rung 1, surely behind all sites, s = 4"
    assert labels[0] == "LoRA on q, k: rung 3, surely behind all sites, s = 4"
    curve = next(line for line in axes.lines if line.get_label() == labels[race.winner])
    assert list(curve.get_xdata()) == pytest.approx([6, 16, 30])
    assert sum(line.get_marker() == "*" for line in axes.lines) == 1
    assert sum(line.get_marker() == "x" for line in axes.lines) == 5


def test_a_race_under_way_is_drawn_as_far_as_it_is(figures, tmp_path):
    plot_race(run(stop=1), tmp_path / "race.svg")
    (axes,) = figures[0].axes
    assert not any(line.get_marker() == "*" for line in axes.lines)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_race(run(stop=0), tmp_path / "race.png")
