"""What a run is asked to do, and the file that keeps it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from peft_noah.data import bundled_backbone
from peft_noah.jsonfile import MAX_COUNT, check_fields, check_int, check_number, dump_json, load_json, write_atomically
from peft_noah.run.registry import find_baseline
from peft_noah.searching.result import SearchSettings
from peft_noah.sources import find_source, stored_path, stored_paths
from peft_noah.training import TrainingSettings
from peft_noah.training.processes import OFF, PRECISIONS
from peft_noah.tuner.config import RECIPES, SPACES

#: cost of the paper's supernet, search and retraining, in fine-tunings of the length of the retraining
PAPER_EFFORT = 5.6
MAX_EFFORT = 100
#: fields that are left to Accelerate and its launcher where they are None
LAUNCHER = ("mixed_precision", "accumulate", "compile")

#: options of earlier versions, each with the value that did nothing: files that hold it can be read
REMOVED = {"risk": 0.0}


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked to do; saved as settings.json.

    Args:
        model: folder or Hub id of a ViT; None: the bundled one.
        dataset: folder of parquet files or images, or a Hub id; None: the bundled task.
        recipe: ``"paper"`` or ``"released"``.
        search_space: ``"vtab"`` or ``"few_shot"``.
        budget: most prompt parameters; None: the paper's 0.64 M, scaled to the backbone's width and depth.
        epochs: of subnet and baselines.
        supernet_epochs: None: 5 x ``epochs``, the paper's proportion.
        variant: of the search: ``"default"``, ``"paper"``, ``"released"``.
        population_size, generations: of the search; None: the variant's.
        baselines: methods to compare with.
        effort: cost of supernet, search and retraining together, in fine-tunings of ``epochs`` epochs: a supernet of
            5 x ``epochs`` and a search of all generations is 5.6, as in the paper, the retraining being 1 of it. What is
            above 1 scales both alike. None: 5.6, or what ``supernet_epochs`` and ``generations`` say.
        cache_gb: most memory that the search may keep hidden states in, in gigabytes (10^9 bytes), besides the backbone
            and one batch.
        screen: let the search look in bfloat16 first, where the hardware has it, and again in float32 where rounding could
            change an answer; the scores are those of float32.
        seed: of everything random.
        num_classes: of lists of numbered classes; None: up to the largest label there is.
        shots: training images per class to take; None: all.
        augment: colour jitter and RandAugment on training images, as the paper does for few-shot learning.
        other_tests: further test sets by name, folders or Hub ids: domain generalisation.
        task, group: what tables call the task and the tasks it belongs with; None: the dataset's name, and no group.
        image_size: side in pixels; None: the backbone's own.
        image_mean, image_std: None: from the backbone's image processor.
        image_column, label_column: None: found by their types.
        dataset_config: which config of a dataset that has several.
        train_split, validation_split, test_split: what the dataset calls its splits; None: by their usual names.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``; None: as Accelerate was told, by its launcher or environment.
        compile: train compiled models, with CUDA graphs on a GPU: after a minute, the steps take a fraction of their time.
            None: as the launcher was told.
        accumulate, sampling: micro-batches per step (None: as Accelerate was told, else 1), and which subnets several
            processes train: as `TrainingSettings` has them.

    Raises:
        ValueError: on a value that is not allowed.
    """

    model: str | None = None
    dataset: str | None = None
    recipe: str = "paper"
    search_space: str = "vtab"
    budget: int | None = None
    epochs: int = 100
    supernet_epochs: int | None = None
    variant: str = "default"
    population_size: int | None = None
    generations: int | None = None
    baselines: tuple[str, ...] = ("linear", "lora", "adapter", "vpt")
    effort: float | None = None
    cache_gb: float = 1.0
    screen: bool = True
    seed: int = 0
    num_classes: int | None = None
    shots: int | None = None
    augment: bool = False
    other_tests: Mapping[str, str] | None = None
    task: str | None = None
    group: str | None = None
    image_size: int | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    image_column: str | None = None
    label_column: str | None = None
    dataset_config: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    mixed_precision: str | None = None
    compile: bool | None = None
    accumulate: int | None = None
    sampling: str = "shared"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in (
            ("recipe", RECIPES),
            ("search_space", SPACES),
            ("mixed_precision", (None, *PRECISIONS)),
        ):
            if getattr(self, name) not in allowed:
                allowed = [value for value in allowed if value is not None]
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        self._store_paths()
        self._check_effort()
        self.search()
        self.training("supernet"), self.training("subnet")
        for name in ("baselines", "image_mean", "image_std"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        object.__setattr__(self, "baselines", tuple(find_baseline(name).name for name in self.baselines))
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be a positive number of parameters, got {self.budget}.")
        check_number(self.cache_gb, "cache_gb", 0)
        if self.shots is not None:
            check_int(self.shots, "shots", 1, MAX_COUNT)

    def _store_paths(self) -> None:
        """Store folders by their absolute paths, so that every stage reads the same."""
        for name in ("model", "dataset"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, stored_path(getattr(self, name)))
        if self.other_tests:
            object.__setattr__(self, "other_tests", stored_paths(self.other_tests))

    def differences(self, other: RunSettings) -> list[str]:
        """The fields in which two runs differ; what one of them leaves to the launcher differs from nothing."""
        mine, theirs = asdict(self), asdict(other)
        left = {name for name in LAUNCHER if None in (mine[name], theirs[name])}
        return [name for name in mine if name not in left and mine[name] != theirs[name]]

    def _check_effort(self) -> None:
        if self.effort is None:
            return
        check_number(self.effort, "effort (1 is the retraining alone)", above=1, high=MAX_EFFORT)
        if self.supernet_epochs is not None or self.generations is not None:
            raise ValueError("effort decides supernet_epochs and generations: give either it or them.")

    @property
    def _share(self) -> float:
        """Supernet and search as a share of the paper's."""
        return 1.0 if self.effort is None else (self.effort - 1) / (PAPER_EFFORT - 1)

    @property
    def compile_mode(self) -> str | None:
        """The mode of `torch.compile`; None: as the launcher was told. A CUDA graph's gradients would not add up over
        micro-batches."""
        if self.compile is None:
            return None
        if not self.compile:
            return OFF
        return "reduce-overhead" if self.accumulate in (None, 1) else "default"

    def training(self, stage: str) -> TrainingSettings:
        """The training settings of ``"supernet"``, ``"subnet"`` or ``"full"``."""
        supernet_epochs = self.supernet_epochs
        if supernet_epochs is None:
            supernet_epochs = max(1, round(5 * self.epochs * self._share))
        epochs = supernet_epochs if stage == "supernet" else self.epochs
        return TrainingSettings.named(
            self.recipe,
            stage,
            self.protocol,
            epochs=epochs,
            seed=self.seed,
            accumulate=1 if self.accumulate is None else self.accumulate,
            sampling=self.sampling,
        )

    def search(self) -> SearchSettings:
        """The settings of the search; children keep their shares of a population of another size."""
        named = SearchSettings.named(self.variant)
        size = named.population_size if self.population_size is None else self.population_size
        generations = max(1, round(named.generations * self._share)) if self.generations is None else self.generations
        return replace(
            named,
            population_size=size,
            generations=generations,
            num_crossover=named.num_crossover * size // named.population_size,
            num_mutation=named.num_mutation * size // named.population_size,
        )

    @property
    def reading(self) -> dict[str, str]:
        """How the dataset is read, where that was asked for: keyword arguments of `read_listings`, but for what chooses
        images."""
        names = ("image_column", "label_column", "dataset_config", "train_split", "validation_split", "test_split")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def protocol(self) -> str:
        """Which of the paper's learning rates apply."""
        return "few_shot" if self.search_space == "few_shot" else "vtab"

    @property
    def backbone(self) -> str:
        """Folder or Hub id of the backbone.

        Raises:
            ValueError: if it is neither.
        """
        if self.model is None:
            return str(bundled_backbone())
        return find_source(self.model, "model", "Give a folder with config.json, or a Hub id.")

    def save(self, path: str | os.PathLike) -> None:
        """Write the settings to a JSON file, all of it or nothing."""
        write_atomically(path, dump_json(asdict(self)))

    @classmethod
    def load(cls, path: str | os.PathLike) -> RunSettings:
        """Read settings back.

        Raises:
            ValueError: if the file does not describe a run.
        """
        return load_json(path, cls.from_dict, "the settings of a run")

    @classmethod
    def from_dict(cls, data: object) -> RunSettings:
        """Settings from plain data; options that this data does not name have their defaults.

        Raises:
            ValueError: it is not an object with names of options.
            ValueError: a value is not allowed, or an option of an earlier version was in use.
        """
        known = {f.name for f in fields(cls)}
        if isinstance(data, dict):
            for name, unused in REMOVED.items():
                if (value := data.get(name, unused)) != unused:
                    raise ValueError(
                        f"{name} is {value!r}: this version has no such option, and reads {unused!r} only."
                    )
            data = {name: value for name, value in data.items() if name not in REMOVED}
        if not isinstance(data, dict) or set(data) - known:
            raise ValueError(f"expected an object with {', '.join(sorted(known))}.")
        return cls(**data)
