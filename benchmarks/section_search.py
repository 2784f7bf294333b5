"""The paper's search beside the same search with the authors' scoring, on a trained supernet.

    python benchmarks/section_search.py             # the bundled task: population 50, 15 generations, 200 images
    python benchmarks/section_search.py --quick     # population 20, 2 generations
    python benchmarks/section_search.py --run runs/mine --every 10 --output search.md   # the supernet of a run

All ways score the same candidates one after the other, so that their times can be compared; what each of them would
have chosen is compared too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from authors_model import Reference
from measure import Table, machine, share
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.data.preprocessing import Normalizer
from peft_noah.fast import fast_forward
from peft_noah.jsonfile import write_atomically
from peft_noah.run.context import read_splits
from peft_noah.run.folder import RunFolder
from peft_noah.run.models import add_supernet, load_backbone
from peft_noah.run.names import SUPERNET
from peft_noah.run.settings import RunSettings
from peft_noah.searching.bounding import search_with_bounds
from peft_noah.searching.budget import scaled_budget
from peft_noah.searching.evolution import Evolution, SearchSettings
from peft_noah.searching.result import Bounds, SearchResult
from peft_noah.searching.scoring import Scorer, map_over_processes
from peft_noah.training import ArchitectureSampler, TrainingSettings, train
from peft_noah.training.processes import make_accelerator
from peft_noah.tuner.adapter_files import load_adapter

G, FAST, BOUNDED = "G, every candidate in full", "fast forward, every candidate in full", "+ within bounds"
GS_BATCH = 50  # its fastest on this processor, of 25, 50, 100, 200
QUICK = SearchSettings(population_size=20, generations=2, num_crossover=10, num_mutation=10)


def run(quick: bool) -> Iterator[Table]:
    """Tables of the search on the bundled task, with a supernet trained for a few epochs."""
    settings = RunSettings(recipe="released")
    splits = read_splits(settings)
    normalize, accelerator = Normalizer(splits.preprocessing), make_accelerator()
    model = add_supernet(load_backbone(settings.backbone, splits, 0), settings.search_space, settings.recipe)
    train(
        model,
        splits.train,
        normalize,
        TrainingSettings.named(settings.recipe, "supernet", epochs=2 if quick else 30),
        accelerator,
        sampler=ArchitectureSampler(model.get_search_space()),
    )
    problem = Problem(model.eval(), splits.validation, normalize, accelerator, QUICK if quick else SearchSettings())
    yield problem.side_by_side()


class Problem:
    """One search, to be done in several ways.

    Args:
        model: the trained supernet, of recipe "released" on a transformers ViT.
        images: the validation split.
        normalize: uint8 pixels to the backbone's input.
        accelerator: device and precision.
        settings: of the search.
        every: the ways without bounds score every so many-th candidate only, and their times count as many times.
    """

    def __init__(self, model: nn.Module, images, normalize, accelerator, settings: SearchSettings, every=1) -> None:
        self.model, self.images, self.settings, self.every = model, images, settings, every
        self.arguments = (images, normalize, accelerator)
        self.pixels = normalize(images.__getitems__(list(range(len(images))))["pixel_values"])
        self.best: SearchResult | None = None

    def search(self, score_all: Callable) -> SearchResult:
        """The search, with any way of scoring within bounds."""
        core = self.model.base_model.model.config
        budget = scaled_budget([core.hidden_size] * core.num_hidden_layers)
        evolution = Evolution(self.model.get_search_space(), self.model.count_parameters, budget, self.settings)
        return search_with_bounds(
            evolution,
            score_all,
            lambda result: print(f"scored {len(result.candidates)}", file=sys.stderr, flush=True),
        )

    def ways(self, stack: ExitStack) -> dict[str, Scorer | Authors]:
        """The ways to score, each on a model of its own that shares the frozen weights."""
        ways: dict[str, Scorer | Authors] = {G: Authors(self.model, self.pixels, self.images.labels)}
        for name in (FAST, BOUNDED):
            copy = share(self.model)
            stack.enter_context(fast_forward(copy))
            ways[name] = Scorer(copy, *self.arguments)
        return ways

    def side_by_side(self) -> Table:
        """All ways on the same candidates."""
        with ExitStack() as stack:
            ways = self.ways(stack)
            seconds, answers = dict.fromkeys(ways, 0.0), {name: [] for name in ways}

            def score_all(architectures, thresholds):
                first = len(answers[BOUNDED])
                for name, way in ways.items():
                    sampled = [i for i in range(len(architectures)) if name == BOUNDED or not (first + i) % self.every]
                    chosen = [architectures[i] for i in sampled]
                    started = time.process_time()
                    if isinstance(way, Authors):
                        found = [way(architecture) for architecture in chosen]
                    else:
                        found = map_over_processes(way, chosen, None if name == FAST else thresholds) if chosen else []
                    seconds[name] += time.process_time() - started
                    answers[name] += found
                full = G if self.every == 1 else BOUNDED
                return answers[full][-len(architectures) :]

            self.best = self.search(score_all)
        total = len(self.best.candidates)
        seconds = {name: spent * total / len(answers[name]) for name, spent in seconds.items()}
        rows, values = [], {}
        for name, way in ways.items():
            images = share_seen(way, len(answers[name]) * len(self.images))
            values[name] = {"images": images, "seconds": seconds[name]}
            rows.append(
                [
                    name,
                    f"{100 * images:.1f} %",
                    f"{seconds[name]:.0f}",
                    f"{seconds[G] / seconds[name]:.2f}",
                    *(same(self.best, answers[name]) if len(answers[name]) == total else ("", "")),
                ]
            )
        header = ["scoring", "images seen", "CPU s", "G / this", "same top 10", "same best"]
        return Table("Search", header, rows, self._note(), values)

    def _note(self) -> str:
        sampled = (
            ""
            if self.every == 1
            else f" The ways without bounds scored every {self.every}th candidate; their seconds are {self.every} times those."
        )
        core = self.model.base_model.model.config
        return (
            f"Population {self.settings.population_size}, {self.settings.generations} generations, {len(self.images)} "
            f"images of {self.pixels.shape[-1]} pixels, a ViT of width {core.hidden_size} "
            f"and {core.num_hidden_layers} blocks, recipe 'released'. Each row adds to the one above; scores are "
            f"float32 in all. G in batches of {GS_BATCH}. Best: {100 * self.best.best.score:.1f} %.{sampled}"
        )


class Authors:
    """G's scoring: every image through the authors' model."""

    def __init__(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        self.model, self.batches, self.labels = Reference(model).eval(), pixels.split(GS_BATCH), labels

    @torch.inference_mode()
    def __call__(self, architecture: Architecture) -> float:
        """Accuracy, a fraction."""
        self.model.set_architecture(architecture)
        right = torch.cat([self.model(batch).argmax(-1) for batch in self.batches]) == self.labels
        return right.sum().item() / len(right)


def share_seen(way: Scorer | Authors, images: int) -> float:
    """Images seen, as a share of scoring in full."""
    return 1.0 if isinstance(way, Authors) else way.difficulty.evaluations / images


def same(result: SearchResult, answers: list) -> tuple[str, str]:
    """Whether the ten best, with their scores, and the best are the same with other answers for the same candidates."""
    candidates = [
        replace(candidate, score=None, bounds=answer)
        if isinstance(answer, Bounds)
        else replace(candidate, score=answer, bounds=None)
        for candidate, answer in zip(result.candidates, answers, strict=True)
    ]
    other = replace(result, candidates=candidates)
    return ("yes" if other.top(10) == result.top(10) else "NO", "yes" if other.best == result.best else "NO")


def of_run(folder: Path, every: int) -> Iterator[Table]:
    """The table for the supernet of a run of recipe "released", whatever its precision was."""
    settings = RunFolder(folder).agree(None)
    splits = read_splits(settings)
    model = load_adapter(load_backbone(settings.backbone, splits, settings.seed), folder / SUPERNET).eval()
    normalize, accelerator = Normalizer(splits.preprocessing), make_accelerator()
    yield Problem(model, splits.validation, normalize, accelerator, settings.search(), every).side_by_side()


def main() -> None:
    """This section alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller search")
    parser.add_argument("--run", type=Path, help="folder of a run with a supernet of recipe 'released'")
    parser.add_argument("--every", type=int, default=10, help="with --run: score every so many-th candidate in full")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = [f"`{' '.join(['python', 'benchmarks/section_search.py', *sys.argv[1:]])}`\n\nMachine: {machine()}.\n"]
    print(parts[0])
    for table in run(arguments.quick) if arguments.run is None else of_run(arguments.run, arguments.every):
        print(table.markdown(), flush=True)
        parts.append(table.markdown())
    if arguments.output is not None:
        write_atomically(arguments.output, "\n".join(parts))


if __name__ == "__main__":
    main()
