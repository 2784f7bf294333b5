"""Rungs of the ladder that search: NOAH's supernet with its evolution, and a training that narrows down to one subnet.

    NOAH     train a supernet on the training images -> evolution on the validation images -> train the best subnet on
    narrows  the same, but the supernet's training stops at three points: candidates are scored on the validation images,
             and from there on each row draws only depths, and each block only dims, that the best of them have

Both end with the paper's recipe for a subnet on all labelled images. All rungs of a table cost the same, counted in passes of
images through the backbone: two for an image that is trained on, one for an image that a candidate is scored on, although
the evolution's bounded scoring looks at fewer.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_noah import Architecture, SearchSpace

#: candidates of a generation of the evolution, or of a point at which a training narrows; generations, or points
POPULATION, GENERATIONS = 10, 3
#: how many candidates of each point are kept: the next subnets are made of them
KEPT = (4, 2, 1)
#: draws for a candidate that is new and within the budget
TRIES = 1_000


@dataclass(frozen=True)
class Searched:
    """A way to search, at the cost of 20 epochs of 1,000 labelled images, 200 of which are for validation.

    Args:
        space: name of a search space.
        scale: of LoRA.
        supernet: epochs of the supernet on the training images.
        continued: epochs of the subnet on all labelled images.
        narrows: whether the supernet's training narrows, in place of an evolution behind it.
    """

    space: str
    scale: float
    supernet: int = 10
    continued: int = 9
    narrows: bool = False


#: "early" divides the time as the trainings that narrow do, and tells what narrowing alone is worth
SEARCHED: dict[str, Searched] = {
    "noah vtab s1": Searched("vtab", 1.0),
    "noah wide s1": Searched("wide", 1.0),
    "noah vtab s16": Searched("vtab", 16.0),
    "noah wide s16": Searched("wide", 16.0),
    "noah wide s16 early": Searched("wide", 16.0, 5, 13),
    "narrow wide s16": Searched("wide", 16.0, 5, 13, narrows=True),
}


@dataclass(frozen=True)
class Choices:
    """What is left of a search space: the depths of each row, and its dims in each block."""

    space: SearchSpace
    depths: Mapping[str, Sequence[int]]
    dims: Mapping[str, Sequence[Sequence[int]]]

    @classmethod
    def all_of(cls, space: SearchSpace) -> Choices:
        """The whole space."""
        dims = {name: [space.choices(name, block) for block in range(space.num_blocks)] for name in space.dims}
        return cls(space, dict(space.depths), dims)

    @classmethod
    def of(cls, space: SearchSpace, architectures: Sequence[Architecture]) -> Choices:
        """The depths and dims that some architectures have; of one architecture, that one alone is left."""
        depths, dims = {}, {}
        for name in space.dims:
            rows = [(space.depth(name, a[name]), a[name]) for a in architectures]
            depths[name] = sorted({depth for depth, _ in rows})
            dims[name] = [
                sorted({row[block] for depth, row in rows if block < depth}) for block in range(space.num_blocks)
            ]
        return cls(space, depths, dims)

    def draw(self, rng: random.Random) -> Architecture:
        """An architecture as `SearchSpace.sample` draws it, of what is left."""
        rows = {}
        for name in self.space.module_order:
            depth = rng.choice(self.depths[name])
            drawn = [rng.choice(self.dims[name][block]) for block in range(depth)]
            rows[name] = drawn + [0] * (self.space.num_blocks - depth)
        return self.space.build(rows)


class NarrowingSampler:
    """The architecture of each step of a training, drawn from what was left of the space when the step began."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.seed, self.stages = seed, [(0, Choices.all_of(space))]

    def __call__(self, step: int) -> Architecture:
        """The architecture of optimiser step ``step``."""
        choices = next(choices for start, choices in reversed(self.stages) if start <= step)
        return choices.draw(random.Random(f"noah:{self.seed}:{step}"))


def draw_candidates(
    choices: Choices, most: int, count: Callable[[Architecture], int], budget: int, rng: random.Random
) -> list[Architecture]:
    """At most ``most`` different architectures of what is left, all within the budget."""
    found: dict[Architecture, None] = {}
    for _ in range(TRIES * most):
        if len(found) == most:
            break
        if count(drawn := choices.draw(rng)) <= budget:
            found[drawn] = None
    return list(found)


def search_subnet(rung: Searched, backbone: Any, splits: Any, normalize: Any, accelerator: Any, seed: int) -> tuple:
    """Find a subnet and train it on; the model, and what is to be known of it."""
    from peft import get_peft_model

    from peft_noah import NoahConfig
    from peft_noah.run.models import count_trainable
    from peft_noah.searching.budget import scaled_budget
    from peft_noah.searching.scoring import Scorer
    from peft_noah.training import TrainingSettings, train
    from peft_noah.tuner.backbones import find_backbone

    budget = scaled_budget(find_backbone(backbone.config.model_type).widths(backbone))
    model = get_peft_model(backbone, NoahConfig(search_space=rung.space, lora_scale=rung.scale))
    scorer = Scorer(model, splits.validation, normalize, accelerator)
    find = narrow if rung.narrows else evolve
    settings = TrainingSettings.named("paper", "supernet", epochs=rung.supernet, seed=seed)
    best, score = find(model, splits.train, normalize, settings, accelerator, scorer, budget)
    subnet = model.extract(best)
    labelled = splits.train + splits.validation
    settings = TrainingSettings.named("paper", "subnet", epochs=rung.continued, seed=seed)
    log = train(subnet, labelled, normalize, settings, accelerator)
    scored = POPULATION * GENERATIONS * len(splits.validation)
    return subnet, {
        "parameters": count_trainable(subnet)[0],
        "training_loss": round(log.losses[-1], 5),
        "image_passes": rung.supernet * len(splits.train) + scored // 2 + rung.continued * len(labelled),
        "scored": scorer.difficulty.evaluations,
        "validation_inherited": round(score, 5),
        "architecture": best.to_dict(),
    }


def evolve(model, images, normalize, settings, accelerator, scorer, budget) -> tuple[Architecture, float]:
    """NOAH: train a supernet, then search it; the best subnet and its score."""
    from peft_noah.searching.bounding import search_with_bounds
    from peft_noah.searching.evolution import Evolution
    from peft_noah.searching.result import SearchSettings
    from peft_noah.searching.scoring import map_over_processes
    from peft_noah.training import ArchitectureSampler, train

    space = model.get_search_space()
    train(model, images, normalize, settings, accelerator, sampler=ArchitectureSampler(space, settings.seed))
    size = POPULATION
    how = SearchSettings(size, GENERATIONS, num_crossover=size // 2, num_mutation=size // 2)
    evolution = Evolution(space, model.count_parameters, budget, how, seed=settings.seed)
    best = search_with_bounds(evolution, functools.partial(map_over_processes, scorer)).best
    return best.architecture, best.score


def narrow(model, images, normalize, settings, accelerator, scorer, budget) -> tuple[Architecture, float]:
    """Train a supernet at a constant rate, and narrow what is drawn until one subnet is left; that, and its score."""
    from dataclasses import replace

    from peft_noah.searching.scoring import map_over_processes
    from peft_noah.training import train
    from peft_noah.training.batches import Shares
    from peft_noah.training.checkpoint import CheckpointFolder

    sampler = NarrowingSampler(model.get_search_space(), settings.seed)
    settings = replace(settings, schedule="constant")
    steps = settings.epochs * Shares(len(images), settings.batch_size, settings.seed).steps
    rng = random.Random(f"candidates:{settings.seed}")
    with tempfile.TemporaryDirectory() as folder:
        for point, kept in enumerate(KEPT, start=1):
            until = steps * point // len(KEPT)
            checkpoint = CheckpointFolder(folder, every_seconds=None)
            train(model, images, normalize, settings, accelerator, sampler=sampler, checkpoint=checkpoint, until=until)
            _, choices = sampler.stages[-1]
            candidates = draw_candidates(choices, POPULATION, model.count_parameters, budget, rng)
            scores = dict(zip(candidates, map_over_processes(scorer, candidates), strict=True))
            best = sorted(candidates, key=lambda each: (-scores[each], model.count_parameters(each)))[:kept]
            sampler.stages.append((until, Choices.of(choices.space, best)))
    return best[0], scores[best[0]]
