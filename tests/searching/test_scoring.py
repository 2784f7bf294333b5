"""Scoring on a real supernet: the accuracy of `evaluate`, bounds, and several processes."""

from __future__ import annotations

import gc
import logging
import random
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_model
from peft import get_peft_model

from peft_noah import NoahConfig
from peft_noah.data.images import ImageSplit
from peft_noah.search_space import SearchSpace
from peft_noah.searching.bounding import ImageDifficulty, Threshold, search_with_bounds
from peft_noah.searching.evolution import Evolution, SearchSettings, search
from peft_noah.searching.result import Bounds, SearchResult
from peft_noah.searching.scoring import Scorer, map_over_processes
from peft_noah.training.evaluation import evaluate
from peft_noah.training.processes import make_accelerator

BUDGET = 4_000
SETTINGS = SearchSettings(population_size=12, generations=4, num_crossover=6, num_mutation=4, num_parents=4)


def normalize(pixels):
    return pixels.float() / 255 - 0.5


def make_images(count: int = 60) -> ImageSplit:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ImageSplit(pixels, torch.randint(0, 5, (count,), generator=generator))


def make_supernet(family: str = "vit", **options):
    """Visible prompt modules, so that subnets differ, and labels that the supernet itself gives to most images."""
    torch.manual_seed(0)
    return get_peft_model(make_model(family), NoahConfig(init_weights=False, **options)).eval()


@torch.no_grad()
def teach(model, images: ImageSplit) -> ImageSplit:
    """Labels that the largest subnet gives, a fifth of them replaced: accuracies are high and differ."""
    model.set_architecture(model.get_search_space().largest())
    labels = model(
        pixel_values=normalize(images.__getitems__(list(range(len(images))))["pixel_values"])
    ).logits.argmax(-1)
    labels[::5] = (labels[::5] + 1) % 5
    return ImageSplit(images._parts[0].pixels, labels)


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def images(supernet):
    return teach(supernet, make_images())


@pytest.fixture
def accelerator():
    return make_accelerator()


def plain_score(model, images, accelerator):
    def score(architecture):
        model.set_architecture(architecture)
        return evaluate(model, images, normalize, accelerator)

    return score


def run(model, scorer, on_round=None):
    evolution = Evolution(model.get_search_space(), model.count_parameters, BUDGET, SETTINGS)
    return search_with_bounds(evolution, partial(map_over_processes, scorer), on_round)


def search_in_full(model, images, accelerator):
    score = plain_score(model, images, accelerator)
    return search(model.get_search_space(), score, model.count_parameters, BUDGET, SETTINGS)


@pytest.fixture(scope="module")
def plain(supernet, images):
    """The search that scores every candidate in full, with `evaluate`."""
    return search_in_full(supernet, images, make_accelerator())


def histories(result):
    return [(c.architecture, c.parameters, c.generation, c.origin, c.parents) for c in result.candidates]


# --- exact accuracies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "dinov2"])
@pytest.mark.parametrize("batch_size", [256, 7])
def test_the_accuracy_is_that_of_evaluate(family, batch_size, accelerator):
    model = make_supernet(family)
    images = teach(model, make_images())
    score, scorer = (
        plain_score(model, images, accelerator),
        Scorer(model, images, normalize, accelerator, batch_size=batch_size),
    )
    architectures = [SearchSpace.vtab(4).sample(random.Random(seed)) for seed in range(6)]
    exact = [score(architecture) for architecture in architectures]
    assert [scorer(architecture) for architecture in architectures] == exact
    assert len(set(exact)) > 2  # subnets differ, so that equal is more than constant
    assert scorer.difficulty.evaluations == 6 * 60 and scorer.done == 6 and scorer.best == max(exact)


def test_images_with_classes_of_their_own_are_scored_among_them(supernet, images, accelerator):
    pixels, labels = images._parts[0].pixels, 2 + images.labels % 2
    some = ImageSplit(pixels, labels, classes=(2, 3))
    largest = supernet.get_search_space().largest()
    exact = plain_score(supernet, some, accelerator)(largest)
    assert Scorer(supernet, some, normalize, accelerator)(largest) == exact
    assert exact > plain_score(supernet, ImageSplit(pixels, labels), accelerator)(largest)


def test_scoring_stops_below_the_threshold_and_its_bounds_hold(supernet, images, accelerator):
    smallest = supernet.get_search_space().smallest()
    scorer = Scorer(supernet, images, normalize, accelerator)
    exact = scorer(smallest)
    bounds = scorer(smallest, Threshold(exact, strict=True))
    assert isinstance(bounds, Bounds) and bounds.low <= exact <= bounds.high <= exact + 1e-9
    assert scorer(smallest, Threshold(exact, strict=False)) == exact
    assert scorer.difficulty.evaluations < 3 * 60


def test_the_models_mode_is_restored_even_after_a_failure(supernet, images, accelerator):
    scorer = Scorer(supernet, images, normalize, accelerator)
    supernet.train()
    scorer(supernet.get_search_space().smallest())
    assert supernet.training
    scorer.normalize = lambda pixels: normalize(pixels)[:, :2]
    with pytest.raises(ValueError, match="channel"):
        scorer(supernet.get_search_space().smallest())
    assert supernet.training
    supernet.eval()


# --- whole searches ------------------------------------------------------------------------------------------------


def test_a_search_with_bounds_has_the_same_history_and_best_with_fewer_images(supernet, images, accelerator, plain):
    scorer = Scorer(supernet, images, normalize, accelerator)
    bounded = run(supernet, scorer)
    assert histories(bounded) == histories(plain)
    assert bounded.top(10) == plain.top(10) and bounded.best == plain.best
    assert sum(c.state == "bounded" for c in bounded.candidates) > 5
    assert scorer.difficulty.evaluations < 0.9 * 60 * len(plain.candidates)


def test_a_resumed_search_scores_nothing_twice_and_leaves_the_same_bytes(
    supernet, images, accelerator, tmp_path, monkeypatch
):
    def keep(scorer):
        def on_round(result):
            scorer.keep(result)
            result.save(tmp_path / f"{len(result.candidates)}.json")

        return on_round

    scorer = Scorer(supernet, images, normalize, accelerator)
    whole = run(supernet, scorer, on_round=keep(scorer))
    whole.save(tmp_path / "whole.json")
    again, asked = Scorer(supernet, images, normalize, accelerator), []
    choose = supernet.set_architecture
    monkeypatch.setattr(supernet, "set_architecture", lambda subnet: asked.append(subnet) or choose(subnet))
    part = SearchResult.load(tmp_path / "24.json")
    again.resume(part)
    assert any(c.bounds is not None for c in part.candidates)
    run(supernet, again, on_round=keep(again)).save(tmp_path / "resumed.json")
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert {*asked} == {c.architecture for c in whole.candidates[24:]} and again.done == len(whole.candidates)


def test_a_search_in_full_can_go_on_with_bounds(supernet, images, accelerator, plain):
    scorer = Scorer(supernet, images, normalize, accelerator)
    scorer.resume(replace(plain, candidates=plain.candidates[:24]))
    bounded = run(supernet, scorer)
    assert histories(bounded) == histories(plain) and bounded.top(10) == plain.top(10)


def test_counts_of_other_images_are_refused(supernet, images, accelerator, plain):
    result = replace(plain, provenance={"racing": ImageDifficulty(7).to_dict()})
    with pytest.raises(ValueError, match="one number for each of 60 images"):
        Scorer(supernet, images, normalize, accelerator).resume(result)


def test_nothing_stays_allocated(supernet, images, accelerator):
    def tensors():
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    scorer = Scorer(supernet, images, normalize, accelerator)
    before = tensors()
    run(supernet, scorer)
    assert tensors() == before


# --- failures and progress -----------------------------------------------------------------------------------------


def test_a_candidate_that_fails_has_no_score_and_the_reason_is_logged(supernet, images, accelerator, caplog):
    space = supernet.get_search_space()
    scorer = Scorer(supernet, images, normalize, accelerator)
    outcome = scorer.outcome
    scorer.outcome = lambda subnet, threshold: outcome(subnet, threshold) if subnet != space.largest() else 1 / 0
    with caplog.at_level(logging.WARNING, logger="peft_noah.searching.scoring"):
        scores = map_over_processes(scorer, [space.smallest(), space.largest()])
    assert scores[0] is not None and scores[1] is None
    assert "1 of 2 candidates could not be scored: Architecture(" in caplog.text
    assert "ZeroDivisionError: division by zero" in caplog.text


def test_a_search_in_which_nothing_at_all_can_be_scored_ends_with_the_reason(supernet, images, accelerator):
    scorer = Scorer(supernet, images, normalize, accelerator)
    scorer.outcome = lambda *args: 1 / 0
    with pytest.raises(
        RuntimeError, match=r"no candidate could be scored. The first was Architecture\(.*ZeroDivision"
    ):
        run(supernet, scorer)


def test_progress_counts_candidates_and_shows_the_best(supernet, images, accelerator):
    shown = []
    scorer = Scorer(supernet, images, normalize, accelerator, on_scored=lambda *values: shown.append(values))
    result = run(supernet, scorer)
    assert [done for done, _ in shown] == list(range(1, len(result.candidates) + 1))
    assert shown[-1][1] == result.best.score


# --- several processes ---------------------------------------------------------------------------------------------


def leave_result(folder: str) -> None:
    """A whole search on the processes that there are, in which some candidates fail."""
    accelerator, model = make_accelerator(), make_supernet()
    images = teach(model, make_images())
    scorer = Scorer(model, images, normalize, accelerator)
    outcome = scorer.outcome
    scorer.outcome = lambda subnet, threshold: outcome(subnet, threshold) if subnet["lora"][0] != 5 else 1 / 0
    result = run(model, scorer)
    scorer.keep(result)
    result.save(Path(folder) / f"{accelerator.num_processes}-{accelerator.process_index}.json")


def test_two_processes_leave_the_same_bytes_as_one_although_candidates_fail(python, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = "import sys\nsys.path[0] = sys.argv[2]\nimport test_scoring\ntest_scoring.leave_result(sys.argv[1])"
    words = ("-c", code, tmp_path, Path(__file__).parent)
    processes = [python.start(*words, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    leave_result(tmp_path)
    for process in processes:
        ended = process.wait()
        assert ended.returncode == 0, ended.stderr
    results = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert sorted(results) == ["1-0.json", "2-0.json", "2-1.json"] and len(set(results.values())) == 1
    candidates = SearchResult.load(tmp_path / "1-0.json").candidates
    failed = [c for c in candidates if c.state == "failed"]
    assert 5 < len(failed) < len(candidates) and {c.architecture["lora"][0] for c in failed} == {5}
