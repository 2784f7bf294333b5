"""The race of designs: who is asked for, who stops and why, who wins, and what a file keeps."""

import json
import math
import random

import pytest

from peft_noah.searching.design import Design
from peft_noah.searching.race import Heat, Race, RaceSettings, Rung, race

IMAGES = 60


def designs(*names, prior=0.0):
    return [Design(name, {"lora": 2}, prior=prior if index else 0.0) for index, name in enumerate(names)]


def scores(strengths, seed=0):
    """Scores of a design: how hard an image is, plus the design's strength, plus some noise of its own."""

    def score(heat):
        rng = random.Random(f"{seed} {heat}")
        hard = random.Random(heat.fold)
        return [hard.random() + strengths[heat.design] + 0.1 * rng.gauss(0, 1) for _ in range(IMAGES)]

    return score


THREE = RaceSettings(rungs=(Rung(4, 0.1), Rung(3, 0.1), Rung(2, 0.2)), surely=1e9)


def test_every_design_is_asked_for_on_every_fold_and_the_worse_stop_at_each_rung():
    asked = []

    def score(heat):
        asked.append(heat)
        return scores([0.0, 0.3, -0.2, 0.2])(heat)

    result = race(designs("a", "b", "c", "d"), score, THREE)
    by_rung = [sorted({heat.design for heat in asked if heat.rung == rung}) for rung in range(3)]
    assert by_rung == [[0, 1, 2, 3], [0, 1, 3], [0, 1]]  # the default keeps its place
    assert all(len([h for h in asked if h.rung == rung]) == 2 * len(by_rung[rung]) for rung in range(3))
    assert result.designs[result.winner].name == "b"
    assert [s.stopped for s in result.standings[0]] == ["", "", "", "behind d"]


def test_the_default_wins_where_nobody_is_ahead_of_it():
    result = race(designs("a", "b", "c"), scores([0.0, -0.2, -0.1]), RaceSettings(rungs=(Rung(3, 0.1), Rung(2, 0.1))))
    assert result.winner == 0 and result.is_over


def test_a_lead_below_half_a_standard_error_leaves_the_default():
    def score(heat):  # b is right on two images that a misses, and wrong on one that a gets
        a = [1.0] * 10 + [0.0] * 10
        b = [0.0] + [1.0] * 9 + [1.0] + [0.0] * 9
        return a if heat.design == 0 else b if heat.fold else a

    settings = RaceSettings(rungs=(Rung(2, 0.1),), prior_error=1.0)
    assert race(designs("a", "b"), score, settings).winner == 0
    ahead = lambda heat: [1.0] * 10 + [0.0] * (10 - 3 * heat.design) + [1.0] * (3 * heat.design)  # noqa: E731
    assert race(designs("a", "b"), ahead, settings).winner == 1


def test_a_design_that_is_surely_worse_stops_though_there_is_a_place():
    settings = RaceSettings(rungs=(Rung(3, 0.1), Rung(3, 0.1)), surely=3.0)
    result = race(designs("a", "b", "c"), scores([0.0, 0.1, -0.9]), settings)
    assert {s.design: s.stopped for s in result.standings[0]} == {0: "", 1: "", 2: "surely behind b"}
    assert {s.design for s in result.standings[1]} == {0, 1}


def test_a_design_that_may_still_catch_up_goes_on_however_sure_it_is_that_it_is_behind_now():
    settings = RaceSettings(rungs=(Rung(3, 0.1), Rung(3, 0.1)), slack=0.3)
    result = race(designs("a", "b", "c"), scores([0.0, -0.28, -0.9]), settings)
    assert {s.design: s.stopped for s in result.standings[0]} == {0: "", 1: "", 2: "surely behind a"}


def test_a_file_from_before_there_was_slack_has_none():
    data = race(designs("a", "b"), scores([0.0, 0.3]), RaceSettings(rungs=(Rung(2, 0.1),), slack=0.0)).to_dict()
    del data["settings"]["slack"]
    assert Race.from_dict(data).settings.slack == 0.0


def test_a_lead_is_drawn_to_the_prior_by_the_rule_of_two_normal_distributions():
    settings = RaceSettings(rungs=(Rung(2, 0.1),), prior_error=0.05)

    def score(heat):
        return [0.0, 0.0, 0.0, 0.0] if heat.design == 0 else [0.0, 0.2, 0.2, 0.4]

    standing = next(s for s in race(designs("a", "b", prior=0.02), score, settings).standings[0] if s.design == 1)
    differences = [0.0, 0.2, 0.2, 0.4] * 2
    mean = sum(differences) / 8
    error2 = sum((d - mean) ** 2 for d in differences) / 7 / 8
    precision = 1 / error2 + 1 / 0.05**2
    assert standing.lead == pytest.approx((mean / error2 + 0.02 / 0.05**2) / precision)
    assert standing.error == pytest.approx(precision**-0.5)
    assert standing.score == pytest.approx(mean)


def test_a_race_of_more_designs_than_places_begins_with_those_of_the_best_prior():
    entries = [Design(str(index), {"lora": 2}, prior=prior) for index, prior in enumerate([0.0, 0.01, 0.05, 0.03])]
    assert Race(entries, RaceSettings(rungs=(Rung(3, 0.1),))).running == [0, 2, 3]


def test_a_race_of_one_design_is_over_at_once():
    alone = Race(designs("a"))
    assert alone.is_over and alone.ask() == [] and alone.winner == 0


def test_a_race_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    score = scores([0.0, 0.3, -0.2, 0.2])
    whole = race(designs("a", "b", "c", "d"), score, THREE, provenance={"task": "x"}, versions={"torch": "2"})
    whole.save(tmp_path / "whole.json")
    for stop in range(len(whole.told) + 1):
        started = Race(designs("a", "b", "c", "d"), THREE, provenance={"task": "x"}, versions={"torch": "2"})
        for _ in range(stop):
            heat = started.ask()[0]
            started.tell(heat, score(heat))
        started.save(tmp_path / "part.json")
        going_on = Race.load(tmp_path / "part.json")
        while heats := going_on.ask():
            going_on.tell(heats[0], score(heats[0]))
        going_on.save(tmp_path / "part.json")
        assert (tmp_path / "part.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_heats_of_one_rung_may_be_told_in_any_order():
    score, results = scores([0.0, 0.3, -0.2, 0.2]), []
    for seed in range(3):
        running, rng = Race(designs("a", "b", "c", "d"), THREE), random.Random(seed)
        while heats := running.ask():
            heat = rng.choice(heats)
            running.tell(heat, score(heat))
        results.append((running.winner, running.standings))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "evolution"}, "not a race"),
        ({"designs": [{"name": "a", "dims": {"lora": -1}}]}, "lora"),
        ({"told": [{"design": 9, "fold": 0, "rung": 0, "notes": {}, "scores": [1.0]}]}, "was not asked for"),
        ({"told": [{"design": 0, "fold": 0, "rung": 0, "notes": {}, "scores": ["x"]}]}, "of another kind|not finite"),
        ({"told": [{"design": 0, "fold": 0}]}, "misses rung, notes, scores"),
        ({"extra": 1}, "unknown"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_with_its_name(change, message, tmp_path):
    path = tmp_path / "race.json"
    Race(designs("a", "b")).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"race.json does not hold a race: .*({message})"):
        Race.load(path)


@pytest.mark.parametrize(
    ("told", "message"), [([math.nan], "not finite"), ([], "not finite"), ([1.0] * 3, "3 scores, but .* has 2")]
)
def test_scores_that_cannot_be_are_refused(told, message):
    running = Race(designs("a", "b"))
    running.tell(Heat(0, 0, 0), [1.0, 0.0])
    with pytest.raises(ValueError, match=message):
        running.tell(Heat(1, 0, 0), told)
    with pytest.raises(ValueError, match="was not asked for"):
        running.tell(Heat(0, 0, 0), [1.0, 0.0])
    with pytest.raises(ValueError, match="not over"):
        _ = running.winner


@pytest.mark.parametrize(
    "settings",
    [
        {"rungs": ()},
        {"rungs": (Rung(2, 0.1), Rung(3, 0.1))},
        {"rungs": (Rung(2, 0.0),)},
        {"folds": 1},
        {"lead": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="give|none may"):
        RaceSettings(**settings)


def test_names_of_designs_differ():
    with pytest.raises(ValueError, match="different names"):
        Race(designs("a", "a"))
