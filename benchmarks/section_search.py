"""The paper's search, raced and with shared prefixes, beside the same search that scores every candidate in full.

    python benchmarks/section_search.py             # population 50, 15 generations, 200 images; about half an hour on one core
    python benchmarks/section_search.py --quick     # population 20, 5 generations; under 5 minutes

All ways score the same candidates one after the other, so that their times can be compared; what each of them would
have chosen is compared too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import torch
from measure import Table, machine, share
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.data.preprocessing import Normalizer
from peft_noah.fast import fast_forward
from peft_noah.methods import attach, load_backbone
from peft_noah.run_context import read_splits
from peft_noah.scoring import Scorer, spread
from peft_noah.search import SearchSettings, scaled_budget, search
from peft_noah.search_result import Bounds, SearchResult
from peft_noah.settings import RunSettings
from peft_noah.training import ArchitectureSampler, TrainingSettings, train
from peft_noah.training.processes import make_accelerator

RISKS = (0.05, 0.2)


def run(quick: bool) -> Iterator[Table]:
    """Tables of the search on the bundled task, with a supernet trained for a few epochs."""
    settings = RunSettings()
    splits = read_splits(settings)
    normalize, accelerator = Normalizer(splits.preprocessing), make_accelerator()
    model = attach(load_backbone(settings.backbone, splits, 0), "supernet", settings.recipe, settings.search_space)
    epochs = 5 if quick else 30
    train(
        model,
        splits.train,
        normalize,
        TrainingSettings.named(settings.recipe, "supernet", epochs=epochs),
        accelerator,
        sampler=ArchitectureSampler(model.get_search_space()),
    )
    model.eval()
    variant = replace(SearchSettings(), population_size=20, generations=5, num_crossover=10, num_mutation=10)
    problem = Problem(model, splits.validation, normalize, accelerator, variant if quick else SearchSettings())
    yield problem.side_by_side()
    yield problem.at_a_risk()


class Problem:
    """One search, to be done in several ways.

    Args:
        model: the trained supernet.
        images: the validation split.
        normalize: uint8 pixels to the backbone's input.
        accelerator: device and precision.
        settings: of the search.
    """

    def __init__(self, model: nn.Module, images, normalize, accelerator, settings: SearchSettings) -> None:
        self.model, self.settings = model, settings
        self.arguments = (images, normalize, accelerator)
        self.pixels = normalize(images.__getitems__(list(range(len(images))))["pixel_values"])
        self.plain: SearchResult | None = None

    def search(self, score, **options) -> SearchResult:
        """The search, with any way of scoring."""
        core = self.model.base_model.model.config
        budget = scaled_budget(core.hidden_size, core.num_hidden_layers)
        count = self.model.count_parameters
        return search(self.model.get_search_space(), score, count, budget, self.settings, **options)

    @torch.inference_mode()
    def _plain(self, architecture: Architecture) -> float:
        """Every image through transformers' own forward, all in one batch."""
        self.model.set_architecture(architecture)
        right = self.model(pixel_values=self.pixels).logits.argmax(-1) == self.arguments[0].labels
        return right.sum().item() / len(right)

    def scorers(self, stack: ExitStack) -> dict[str, Callable]:
        """The ways to score, each on a model of its own that shares the frozen weights."""
        scorers: dict[str, Callable] = {"every candidate in full, plain forward": self._plain}
        for name in ("every candidate in full", "raced", "raced, shared prefixes"):
            copy = share(self.model)
            stack.enter_context(fast_forward(copy))
            scorers[f"{name}, fast forward"] = scorer = Scorer(copy, *self.arguments)
            if "prefixes" not in name:
                scorer.prefixes.reason = "turned off, to be compared"
        return scorers

    def side_by_side(self) -> Table:
        """All ways on the same candidates."""
        with ExitStack() as stack:
            scorers = self.scorers(stack)
            seconds, answers = dict.fromkeys(scorers, 0.0), {name: [] for name in scorers}

            def score_all(_, architectures, bars):
                for name, scorer in scorers.items():
                    started = time.process_time()
                    if isinstance(scorer, Scorer):
                        answers[name] += spread(scorer, architectures, bars if "raced" in name else None)
                    else:
                        answers[name] += [scorer(architecture) for architecture in architectures]
                    seconds[name] += time.process_time() - started
                return answers[next(iter(scorers))][-len(architectures) :]

            self.plain = self.search(None, racing=True, map=score_all)
        size, base = len(self.arguments[0]) * len(self.plain.candidates), next(iter(scorers))
        rows, values = [], {}
        for name, scorer in scorers.items():
            result = with_answers(self.plain, answers[name])
            images = scorer.hardness.evaluations if isinstance(scorer, Scorer) else size
            blocks = images / size
            if isinstance(scorer, Scorer) and scorer.prefixes.blocks_run:
                ran, shared = scorer.prefixes.blocks_run, scorer.prefixes.blocks_shared
                blocks *= ran / (ran + shared)
            values[name] = {"images": images / size, "blocks": blocks, "seconds": seconds[name]}
            rows.append(
                [
                    name,
                    f"{100 * images / size:.1f} %",
                    f"{100 * blocks:.1f} %",
                    f"{seconds[name]:.0f}",
                    f"{seconds[base] / seconds[name]:.2f}",
                    *same(result, self.plain),
                ]
            )
        header = ["scoring", "images seen", "blocks run", "CPU s", "plain / this", "same top 10", "same best"]
        note = (
            f"Population {self.settings.population_size}, {self.settings.generations} generations, "
            f"{len(self.arguments[0])} images, cache 1 GB. Best: {100 * self.plain.best.score:.1f} %."
        )
        return Table("Search", header, rows, note, values)

    def at_a_risk(self) -> Table:
        """Searches at a stated risk, which may go another way."""
        rows, size = [], len(self.arguments[0]) * len(self.plain.candidates)
        for risk in RISKS:
            scorer = Scorer(self.model, *self.arguments, risk=risk)
            with fast_forward(self.model):
                result = self.search(scorer, racing=True, map=spread)
            kept = len({c.architecture for c in result.top(10)} & {c.architecture for c in self.plain.top(10)})
            rows.append(
                [
                    f"{risk:g}",
                    f"{100 * scorer.hardness.evaluations / size:.1f} %",
                    f"{kept} of 10",
                    f"{result.best.score:.3f}",
                ]
            )
        note = f"Best of the search that scores all in full: {self.plain.best.score:.3f}."
        return Table("Search at a stated risk", ["risk", "images seen", "top 10 kept", "best accuracy"], rows, note)


def with_answers(result: SearchResult, answers: list) -> SearchResult:
    """The result with other answers for the same candidates."""
    candidates = [
        replace(candidate, score=None, bounds=answer)
        if isinstance(answer, Bounds)
        else replace(candidate, score=answer)
        for candidate, answer in zip(result.candidates, answers, strict=True)
    ]
    return replace(result, candidates=candidates)


def same(result: SearchResult, plain: SearchResult) -> tuple[str, str]:
    """Whether the ten best and the best are those of the plain search."""
    return ("yes" if result.top(10) == plain.top(10) else "NO", "yes" if result.best == plain.best else "NO")


def main() -> None:
    """This section alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller search, under 5 minutes")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"Machine: {machine()}.\n")
    for table in run(quick):
        print(table.markdown(), flush=True)


if __name__ == "__main__":
    main()
