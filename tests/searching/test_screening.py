"""Screening in bfloat16: what it decides, and what it leaves to float32."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import unhurried

from peft_noah.searching.bounding import ImageDifficulty, Threshold, bounded_accuracy
from peft_noah.searching.result import Bounds
from peft_noah.searching.screening import (
    FIRST_SAFETY,
    SAFETY,
    ConfirmedAnswers,
    Screen,
    Uncertain,
    label_margin,
)

CPU = torch.device("cpu")


# --- one image -----------------------------------------------------------------------------------------------------


def test_the_margin_is_that_of_the_label_to_the_largest_other_logit_among_the_classes():
    logits, labels = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 2])
    assert label_margin(logits, labels).tolist() == [1.0, -1.0]
    assert label_margin(logits, labels, (0, 1, 2)).tolist() == [1.0, -1.0]
    assert label_margin(logits, torch.tensor([0, 2]), (0, 2)).tolist() == [-1.0, 1.0]


def test_an_image_is_decided_only_where_its_margin_is_larger_than_rounding(bfloat16):
    screen = Screen(torch.nn.Linear(1, 1), CPU, "no")

    def answer(margin):
        return screen.classify(torch.tensor([margin]))[0]

    assert screen.reason is None and answer(5.0) == Uncertain(True, 5.0)  # nothing is known of rounding yet
    screen.learn(0.5)
    t = 0.5 * SAFETY
    assert [answer(t + 0.1), answer(-t - 0.1)] == [True, False]
    assert [answer(t - 0.125), answer(-t + 0.125)] == [Uncertain(True, t - 0.125), Uncertain(False, t - 0.125)]
    assert answer(0.0) == answer(math.nan) == Uncertain(False, 0.0)
    screen.learn(0.1)
    assert screen.change == 0.5


def test_what_a_first_candidate_has_seen_itself_is_trusted_less(bfloat16):
    screen, margins = Screen(torch.nn.Linear(1, 1), CPU, "no"), torch.tensor([1.9, 2.1, -2.1])
    assert FIRST_SAFETY * 0.5 == 2.0 > SAFETY * 0.5
    answers = screen.classify(margins, own_change=0.5)
    assert answers == [Uncertain(True, pytest.approx(1.9)), True, False]
    assert all(isinstance(answer, Uncertain) for answer in screen.classify(margins, own_change=math.inf))


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


# --- one candidate ------------------------------------------------------------------------------------------------------


kinds = st.booleans() | st.builds(Uncertain, st.booleans(), st.floats(0, 1))


@settings(unhurried, max_examples=80)
@given(st.lists(st.tuples(st.booleans(), kinds), min_size=1, max_size=60), st.data())
def test_uncertain_answers_decide_nothing(answers, data):
    right = [
        truth if isinstance(kind, Uncertain) else kind for truth, kind in answers
    ]  # only uncertain ones may be mistaken
    size, asked = len(right), []
    threshold = data.draw(
        st.none() | st.builds(Threshold, st.integers(0, size).map(lambda k: k / size), st.booleans())
    )

    def confirm(images):
        asked.extend(images)
        return [right[image] for image in images]

    guess = ConfirmedAnswers(lambda images: [answers[image][1] for image in images], confirm)
    outcome = bounded_accuracy(guess, ImageDifficulty(size), threshold)
    exact = sum(right) / size
    assert len({*asked}) == len(asked) and all(isinstance(answers[image][1], Uncertain) for image in asked)
    assert all(not right[image] for image in outcome.wrong)
    if isinstance(outcome.result, Bounds):
        assert outcome.result.low <= exact <= outcome.result.high and not threshold.reached_by(exact)
    else:
        assert outcome.result == exact


def test_uncertain_answers_are_confirmed_only_where_they_could_decide():
    asked = []

    def confirm(images):
        asked.append(images)
        return [True] * len(images)

    def run(guess, images=20):
        asked.clear()
        answers = ConfirmedAnswers(guess, confirm)
        return bounded_accuracy(answers, ImageDifficulty(images), Threshold(0.5, True)).result

    assert run(lambda images: [False] * len(images)) == 0.0 and asked == []
    assert run(lambda images: [True] * len(images)) == 1.0 and asked == []
    # lost by sure answers alone: 16 of the 20, before the others matter
    lost = run(lambda images: [Uncertain(True) if image < 4 else False for image in images])
    assert isinstance(lost, Bounds) and asked == []
    # lost only if the uncertain ones are wrong: they are asked, all others being known
    assert run(lambda images: [Uncertain(False) if image < 10 else True for image in images]) == 1.0
    assert [sorted(images) for images in asked] == [list(range(10))]


def test_the_most_certain_are_confirmed_first_and_no_more_than_it_takes():
    asked = []

    def run(right):
        asked.clear()

        def confirm(images):
            asked.append(images)
            return [image in right for image in images]

        answers = [Uncertain(False, image / 20) if image < 12 else False for image in range(20)]
        guess = ConfirmedAnswers(lambda images: [answers[image] for image in images], confirm)
        return bounded_accuracy(guess, ImageDifficulty(20), Threshold(0.5, False))

    assert run(right=set()).result == Bounds(0.0, 0.45) and asked == [[11, 10, 9]]
    assert run(right={10, 9, 8}).result == Bounds(0.15, 0.45) and asked == [[11, 10, 9], [8, 7], [6]]
    assert run(right=set(range(2, 12))).result == 0.5 and [image for images in asked for image in images] == [
        *range(11, -1, -1)
    ]
