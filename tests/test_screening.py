"""Screening in bfloat16: what it decides, what it leaves to float32, and that scores are those of float32."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import unhurried
from test_scoring import histories, make_images, make_supernet, normalize, plain_score, run, teach

from peft_noah import screening
from peft_noah.racing import Bar, Hardness, Unsure, race
from peft_noah.scoring import Scorer, spread
from peft_noah.screening import SAFETY, Screen, label_gap
from peft_noah.search_result import Bounds
from peft_noah.training.processes import make_accelerator

CPU = torch.device("cpu")


@pytest.fixture
def bfloat16(monkeypatch):
    """As on a machine with bfloat16 in hardware; others compute the same, more slowly."""
    monkeypatch.setattr(screening, "has_bfloat16", lambda device: True)


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def images(supernet):
    return teach(supernet, make_images())


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

    assert screen.reason is None and answer(5.0) == Unsure(True)  # nothing is known of rounding yet
    screen.learn(0.5)
    t = 0.5 * SAFETY
    assert [answer(t + 0.1), answer(-t - 0.1)] == [True, False]
    assert [answer(t - 0.1), answer(-t + 0.1)] == [Unsure(True), Unsure(False)]
    assert answer(0.0) == answer(math.nan) == Unsure(False)
    screen.learn(0.1)
    assert screen.change == 0.5


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
    assert not screening.has_bfloat16(torch.device("meta"))


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


kinds = st.sampled_from([True, False, Unsure(True), Unsure(False)])


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
    assert asked == [list(range(10))]


# --- a supernet ----------------------------------------------------------------------------------------------------


def test_a_screened_search_has_the_scores_of_float32(supernet, images, bfloat16):
    accelerator = make_accelerator()
    plain = run(supernet, images, plain_score(supernet, images, accelerator))
    scorer = Scorer(supernet, images, normalize, accelerator)
    screened = run(supernet, images, scorer, racing=True, map=spread)
    assert scorer.screen.reason is None and scorer.screen.change > 0
    assert histories(screened) == histories(plain) and screened.top(10) == plain.top(10)
    assert 0 < scorer.looked_again < 0.5 * len(images) * len(plain.candidates)
    unscreened = Scorer(supernet, images, normalize, accelerator, screen=False)
    run(supernet, images, unscreened, racing=True, map=spread)
    assert unscreened.screen.reason == "it was not asked for" and unscreened.looked_again == 0


@pytest.mark.parametrize("trusted", [False, True])
def test_noise_within_the_safety_changes_no_score_and_trusting_it_would(
    supernet, images, trusted, bfloat16, monkeypatch
):
    accelerator, noise = make_accelerator(), torch.Generator().manual_seed(0)
    scorer, exact = Scorer(supernet, images, normalize, accelerator), plain_score(supernet, images, accelerator)
    space = supernet.get_search_space()
    architectures = [space.sample(random.Random(seed)) for seed in range(6)]
    first = [scorer(architecture) for architecture in architectures[:1]]
    logits, most = scorer.prefixes.logits, 0.05

    def noisy(*args):
        exactly = logits(*args).float()
        return exactly + most * (2 * torch.rand(exactly.shape, generator=noise) - 1)

    monkeypatch.setattr(scorer.prefixes, "logits", noisy)
    if trusted:
        monkeypatch.setattr(scorer.screen, "change", 0.0)
        monkeypatch.setattr(scorer.screen, "learn", lambda change: None)
    else:
        scorer.screen.learn(2 * most)
    scores = first + [scorer(architecture) for architecture in architectures[1:]]
    assert (scores == [exact(architecture) for architecture in architectures]) is not trusted


def test_a_resumed_screened_search_starts_from_what_was_learnt(supernet, images, bfloat16):
    accelerator = make_accelerator()
    scorer = Scorer(supernet, images, normalize, accelerator)
    result = run(supernet, images, scorer, racing=True, map=spread)
    scorer.keep(result)
    again = Scorer(supernet, images, normalize, accelerator)
    again.resume(result)
    assert again.screen.change == scorer.screen.change == result.provenance["screening"]["change"]
