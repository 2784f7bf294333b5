"""Screening in bfloat16: what it decides, and what it leaves to float32."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import unhurried

from peft_noah.searching.racing import Bar, Hardness, Unsure, race
from peft_noah.searching.result import Bounds
from peft_noah.searching.screening import FIRST_SAFETY, SAFETY, Screen, label_gap

CPU = torch.device("cpu")


# --- one image -----------------------------------------------------------------------------------------------------


def test_the_gap_is_that_of_the_label_to_the_largest_other_logit_among_the_classes():
    logits, labels = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 2])
    assert label_gap(logits, labels).tolist() == [1.0, -1.0]
    assert label_gap(logits, labels, (0, 1, 2)).tolist() == [1.0, -1.0]
    assert label_gap(logits, torch.tensor([0, 2]), (0, 2)).tolist() == [-1.0, 1.0]


def test_an_image_is_decided_only_where_its_gap_is_larger_than_rounding(bfloat16):
    screen, label = Screen(torch.nn.Linear(1, 1), CPU, "no"), torch.tensor([0])

    def answer(gap):
        return screen.answers(torch.tensor([[gap, 0.0]]), label)[0]

    assert screen.reason is None and answer(5.0) == Unsure(True, 5.0)  # nothing is known of rounding yet
    screen.learn(0.5)
    t = 0.5 * SAFETY
    assert [answer(t + 0.1), answer(-t - 0.1)] == [True, False]
    assert [answer(t - 0.125), answer(-t + 0.125)] == [Unsure(True, t - 0.125), Unsure(False, t - 0.125)]
    assert answer(0.0) == answer(math.nan) == Unsure(False, 0.0)
    screen.learn(0.1)
    assert screen.change == 0.5


def test_what_a_first_candidate_has_seen_itself_is_trusted_less(bfloat16):
    screen, logits = Screen(torch.nn.Linear(1, 1), CPU, "no"), torch.tensor([[1.9, 0.0], [2.1, 0.0], [-2.1, 0.0]])
    assert FIRST_SAFETY * 0.5 == 2.0 > SAFETY * 0.5
    answers = screen.answers(logits, torch.tensor([0, 0, 0]), first=0.5)
    assert answers == [Unsure(True, pytest.approx(1.9)), True, False]
    assert all(
        isinstance(answer, Unsure) for answer in screen.answers(logits, torch.tensor([0, 0, 0]), first=math.inf)
    )


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (torch.nn.Linear(1, 1), {"wanted": False}, "not asked for"),
        (torch.nn.Linear(1, 1), {"precision": "bf16"}, "'bf16' throughout"),
        (torch.nn.Linear(1, 1, dtype=torch.float64), {}, "not all weights are float32"),
    ],
)
def test_it_is_off_where_there_is_nothing_to_gain(model, options, reason, bfloat16):
    assert reason in Screen(model, CPU, **{"precision": "no", **options}).reason


def test_it_is_off_without_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert Screen(torch.nn.Linear(1, 1), CPU, "no").reason == "the cpu has no arithmetic in bfloat16"


def test_what_was_learnt_comes_back_and_what_cannot_be_is_refused(bfloat16):
    screen = Screen(torch.nn.Linear(1, 1), CPU, "no")
    assert screen.to_dict() == {}
    screen.learn(0.25)
    again = Screen(torch.nn.Linear(1, 1), CPU, "no")
    again.resume(screen.to_dict())
    assert again.change == 0.25
    for broken in ({"change": -1.0}, {"change": math.nan}, {"change": "0"}, {"change": True}, {}):
        with pytest.raises(ValueError, match="bfloat16"):
            again.resume(broken)
    screen.learn(math.inf)
    assert "does not hold" in screen.reason and screen.to_dict() == {}


# --- one race ------------------------------------------------------------------------------------------------------


kinds = st.booleans() | st.builds(Unsure, st.booleans(), st.floats(0, 1))


@settings(unhurried, max_examples=80)
@given(st.lists(st.tuples(st.booleans(), kinds), min_size=1, max_size=60), st.data())
def test_unsure_answers_decide_nothing(answers, data):
    right = [
        truth if isinstance(kind, Unsure) else kind for truth, kind in answers
    ]  # only unsure ones may be mistaken
    size, asked = len(right), []
    bar = data.draw(st.none() | st.builds(Bar, st.integers(0, size).map(lambda k: k / size), st.booleans()))

    def recheck(images):
        asked.extend(images)
        return [right[image] for image in images]

    outcome = race(lambda images: [answers[image][1] for image in images], Hardness(size), bar, recheck=recheck)
    exact = sum(right) / size
    assert len({*asked}) == len(asked) and all(isinstance(answers[image][1], Unsure) for image in asked)
    assert all(not right[image] for image in outcome.wrong)
    if isinstance(outcome.result, Bounds):
        assert outcome.result.low <= exact <= outcome.result.high and not bar.reached_by(exact)
    else:
        assert outcome.result == exact


def test_unsure_answers_are_asked_again_only_where_they_could_decide():
    asked = []

    def recheck(images):
        asked.append(images)
        return [True] * len(images)

    def run(check, images=20):
        asked.clear()
        return race(check, Hardness(images), Bar(0.5, True), recheck=recheck).result

    assert run(lambda images: [False] * len(images)) == 0.0 and asked == []
    assert run(lambda images: [True] * len(images)) == 1.0 and asked == []
    # lost by sure answers alone: 16 of the 20, before the others matter
    lost = run(lambda images: [Unsure(True) if image < 4 else False for image in images])
    assert isinstance(lost, Bounds) and asked == []
    # lost only if the unsure ones are wrong: they are asked, all others being known
    assert run(lambda images: [Unsure(False) if image < 10 else True for image in images]) == 1.0
    assert [sorted(images) for images in asked] == [list(range(10))]


def test_the_surest_are_asked_first_and_no_more_than_it_takes():
    asked = []

    def run(right):
        asked.clear()

        def recheck(images):
            asked.append(images)
            return [image in right for image in images]

        answers = [Unsure(False, image / 20) if image < 12 else False for image in range(20)]
        return race(
            lambda images: [answers[image] for image in images], Hardness(20), Bar(0.5, False), recheck=recheck
        )

    assert run(right=set()).result == Bounds(0.0, 0.45) and asked == [[11, 10, 9]]
    assert run(right={10, 9, 8}).result == Bounds(0.15, 0.45) and asked == [[11, 10, 9], [8, 7], [6]]
    assert run(right=set(range(2, 12))).result == 0.5 and [image for images in asked for image in images] == [
        *range(11, -1, -1)
    ]
