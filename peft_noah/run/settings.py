"""What a run is asked to do, and the file that keeps it.

An option stands here once, with its type, default and help; Python and the command line read it. Nothing here imports torch
before a value is checked, so that help comes at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from peft_noah.jsonfile import MAX_COUNT, check_fields, check_int, check_number, dump_json, load_json, write_atomically
from peft_noah.plugins import check_imported, read_plugin_names
from peft_noah.run.designs import designs_among, read_designs, read_methods
from peft_noah.run.earlier_settings import brought_up_to_date
from peft_noah.run.options import Typed, option, read_pairs, read_triple
from peft_noah.run.registry import find_baseline, strategies
from peft_noah.run.spaces import build_space, check_space, read_space
from peft_noah.run.tasks import IMAGES, TASKS
from peft_noah.searching.design import Design
from peft_noah.searching.folds import can_score, folds_for
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.race import RaceSettings
from peft_noah.searching.race_length import EFFORT, heats_cost, rungs_within, winner_epochs
from peft_noah.searching.result import SearchSettings
from peft_noah.sources import find_source, stored_path, stored_paths
from peft_noah.tuner.recipes import RECIPES

if TYPE_CHECKING:
    from peft_noah.search_space import SearchSpace
    from peft_noah.training import TrainingSettings

#: length of a training, where it is left out
EPOCHS = 100
#: the same for the bundled task, with what else is left out: the whole job ends within five minutes on two CPU cores
BUNDLED = {"epochs": 10, "supernet_epochs": 30, "generations": 5}
#: cost of the paper's supernet, search and retraining, in fine-tunings of the length of the retraining
PAPER_EFFORT = 5.6
MAX_EFFORT = 100
#: fields that are left to Accelerate and its launcher where they are None
LAUNCHER = ("mixed_precision", "accumulate", "compile")

#: options that mean something for images, or for texts, alone
OF_IMAGES = ("augment", "other_tests", "image_size", "image_mean", "image_std", "image_column", "compile")
OF_TEXTS = ("text_column", "max_tokens")

_TRIPLE = Typed(str | None, None, read_triple)
#: what each strategy is compared with, where that is left out
BASELINES = {"noah": ("linear", "lora", "adapter", "vpt")}


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked to do; saved as settings.json. ``peft-noah run --help`` prints what each field means.

    Raises:
        ValueError: on a value that is not allowed.
    """

    model: str | None = option(None, "Folder or Hub id of a ViT. Default: the bundled vit-tiny-64.")
    dataset: str | None = option(
        None,
        "Folder of images by (split and) class, of parquet files, or saved by datasets; or a Hub id. Default: the bundled "
        "task.",
    )
    task: str = option(
        IMAGES,
        "image-classification, or text-classification: then --model is BERT or the like with its tokenizer, and --dataset a "
        "folder of parquet, CSV or JSON files with the columns text and label.",
    )
    strategy: str = option(
        "fixed",
        "fixed: the default design, LoRA on every Linear, without a search. race: several designs trained side by side for a "
        "while, the winner trained on. noah: a supernet, its search, the best subnet.",
    )
    recipe: str = option("paper", "paper, or released (the authors' code).")
    search_space: str | Mapping[str, object] = option(
        "vtab",
        "vtab (dims 1, 5, 10), few_shot (5, 10, 50, 100), wide (LoRA on each Linear, Adapter+), or a JSON file with a space of "
        "your own.",
        Typed(str, "vtab", read_space),
        strategies=("noah",),
        always=("few_shot",),  # it has learning rates of its own
    )
    modules: tuple[str, ...] | None = option(
        None,
        "Rows that a named search space has, separated by commas, such as lora,adapter,ssf. Default: its own.",
        Typed(str | None, None, lambda text, name: None if text is None else tuple(text.split(","))),
        strategies=("noah",),
    )
    budget: int | None = option(
        None,
        "Most prompt parameters, classifier excluded. Default: with noah the paper's 0.64 M scaled to the model, with race none.",
        strategies=("race", "noah"),
    )
    epochs: int | None = option(
        None,
        f"Epochs of subnet and baselines. Default: {EPOCHS}; for the bundled task {BUNDLED['epochs']}, then with "
        f"{BUNDLED['supernet_epochs']} for its supernet and {BUNDLED['generations']} generations; for a suite of a user's own "
        "tasks 10, then with --effort 3.",
    )
    supernet_epochs: int | None = option(
        None, "Epochs of the supernet. Default: 5 x epochs, as in the paper; see --epochs.", strategies=("noah",)
    )
    variant: str = option("default", "The search's variant: default, paper or released.", strategies=("noah",))
    population_size: int | None = option(
        None, "Candidates of a generation. Default: the variant's.", strategies=("noah",)
    )
    generations: int | None = option(
        None, "Rounds of the search. Default: the variant's; see --epochs.", strategies=("noah",)
    )
    baselines: tuple[str | Mapping[str, object], ...] | None = option(
        None,
        "Methods to compare with, separated by commas, each a name or the JSON file of a design; 'none' for none. Default: none, "
        f"with noah {','.join(BASELINES['noah'])}.",
        Typed(str | None, None, read_methods),
    )
    designs: tuple[Mapping[str, object], ...] | None = option(
        None,
        "JSON file of a design; may be repeated. These race, instead of those of the package; the first is the default.",
        Typed(list[str], [], read_designs, "design"),
        strategies=("race",),
    )
    effort: float | None = option(
        None,
        f"What the strategy costs, in fine-tunes of --epochs on all labelled images. race: heats, scores and the winner "
        f"together, counted in image passes; 1 trains the default design alone, and so does little more. Default: {EFFORT:g}. "
        f"noah: supernet, search and retraining, of which the retraining is 1; instead of --supernet-epochs and "
        f"--generations. The paper's: {PAPER_EFFORT}.",
        strategies=("race", "noah"),
    )
    seed: int = option(0, "Seed of everything random.")
    #: of lists of numbered classes; None: up to the largest label there is
    num_classes: int | None = None
    shots: int | None = option(None, "Training images per class. Default: all.")
    augment: bool = option(False, "Colour jitter and RandAugment on training images, as for few-shot learning.")
    other_tests: Mapping[str, str] | None = option(
        None,
        "A further test set as NAME=FOLDER or NAME=HUB-ID; may be repeated.",
        Typed(list[str], [], read_pairs, "other_test"),
    )
    #: what tables call the task and the tasks it belongs with; None: the dataset's name, and no group
    task_name: str | None = None
    group: str | None = None
    image_size: int | None = option(None, "Side in pixels. Default: the backbone's own.")
    image_mean: tuple[float, ...] | None = option(
        None, "Three numbers 'r,g,b'. Default: from the backbone's processor.", _TRIPLE
    )
    image_std: tuple[float, ...] | None = option(
        None, "Three numbers 'r,g,b'. Default: from the backbone's processor.", _TRIPLE
    )
    image_column: str | None = option(None, "Column of images. Default: found by its type.")
    label_column: str | None = option(None, "Column of labels. Default: found by its type.")
    text_column: str | None = option(None, "Column of texts. Default: text, else the only one of texts.")
    max_tokens: int | None = option(
        None, "Tokens behind which a text is cut off. Default: 256, or as many as the model reads."
    )
    dataset_config: str | None = option(None, "Which config of a dataset that has several.")
    train_split: str | None = option(None, "Name of the training split. Default: train, in its usual spellings.")
    validation_split: str | None = option(
        None, "Name of the validation split. Default: validation, val, valid or dev; else it is drawn."
    )
    test_split: str | None = option(None, "Name of the test split. Default: test; without one, no test accuracy.")
    mixed_precision: str | None = option(
        None, "no, fp16 or bf16. Default: what 'accelerate launch' or its environment says, else no."
    )
    compile: bool | None = option(
        None,
        "Compile what is trained, with CUDA graphs: for a GPU; takes a minute or two for each model. Default: what "
        "'accelerate launch' says.",
    )
    accumulate: int | None = option(
        None,
        "Micro-batches per step and process, to save memory. Default: what Accelerate's environment says, else 1.",
    )
    sampling: str = option(
        "shared",
        "Several processes have a subnet shared, or per-process (each its own), in a step.",
        strategies=("noah",),
    )
    plugins: tuple[str, ...] | None = option(
        None,
        "Python module of yours, as in 'import my_package.my_module', that registers prompt modules, backbones or methods. "
        "May be repeated.",
        Typed(list[str], [], read_plugin_names, "plugin"),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_imported(self.plugins)  # first: what is allowed depends on them
        self._check_choices()
        self._check_task()
        check_space(self.search_space, self.modules)
        if self.strategy != "noah" and not isinstance(self.search_space, str):
            raise ValueError(
                f"a search space of your own has no effect on strategy {self.strategy}: leave it out, or ask for noah."
            )
        self._store_paths()
        self._check_effort()
        self._settle_length()
        self.search()
        self.training("supernet"), self.training("subnet")
        for name in ("image_mean", "image_std", "plugins", "modules"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        self._store_designs()
        self._check_numbers()

    def _check_choices(self) -> None:
        from peft_noah.training.processes import PRECISIONS

        for name, allowed in (
            ("task", TASKS),
            ("strategy", strategies()),
            ("recipe", RECIPES),
            ("mixed_precision", (None, *PRECISIONS)),
        ):
            if getattr(self, name) not in allowed:
                allowed = [value for value in allowed if value is not None]
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")

    def _store_designs(self) -> None:
        """Store designs as plain data, and baselines by their own names."""
        names = BASELINES.get(self.strategy, ()) if self.baselines is None else self.baselines
        own = iter(designs_among(names))
        names = tuple(find_baseline(name).name if isinstance(name, str) else next(own).to_dict() for name in names)
        object.__setattr__(self, "baselines", names)
        raced = designs_among(self.designs or ())
        object.__setattr__(self, "designs", tuple(design.to_dict() for design in raced) or None)

    def _check_numbers(self) -> None:
        for name in ("budget", "shots", "num_classes", "accumulate"):
            if (value := getattr(self, name)) is not None:
                check_int(value, name, 1, MAX_COUNT)
        if self.image_size is not None:
            from peft_noah.data.image_processor import MAX_SIDE

            check_int(self.image_size, "image_size", 1, MAX_SIDE)
        for value in self.image_std or ():
            check_number(value, "a number of image_std", above=0)

    def _check_task(self) -> None:
        """Refuse options of the other task, whose values would do nothing."""
        others = OF_TEXTS if self.task == IMAGES else OF_IMAGES
        if given := [name for name in others if getattr(self, name)]:
            raise ValueError(
                f"{given[0]} is {getattr(self, given[0])!r}, but the task is {self.task}. Leave it out, or choose another task."
            )
        if self.task != IMAGES and self.dataset is None:
            raise ValueError(
                f"{self.task} needs a dataset: none for it comes with the package. Give a folder, or a Hub id."
            )
        if self.max_tokens is not None:
            check_int(self.max_tokens, "max_tokens", 1, MAX_COUNT)

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

    def _settle_length(self) -> None:
        """Decide what is left out where ``epochs`` is; where it is given, 5 x epochs and the variant's are left to hold."""
        if self.epochs is not None:
            return
        length = {"epochs": EPOCHS}
        if self.dataset is None:
            length = BUNDLED if self.effort is None else {"epochs": BUNDLED["epochs"]}
        for name, value in length.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_effort(self) -> None:
        for name in ("budget", "designs", "effort") if self.strategy == "fixed" else ():
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name} is {value!r}, which has no effect on strategy fixed: leave it out, or ask for race."
                )
        if self.effort is None:
            return
        if self.strategy == "race":
            check_number(self.effort, "effort (1 is the default design alone)", 1, high=MAX_EFFORT)
        else:
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
            from peft_noah.training.processes import OFF

            return OFF
        return "reduce-overhead" if self.accumulate in (None, 1) else "default"

    def training(self, stage: str) -> TrainingSettings:
        """The training settings of ``"supernet"``, ``"subnet"``, ``"full"``, a ``"design"``, or a race's ``"winner"``.

        A design says how strong its update is at VTAB-1k's learning rate. At five times that rate, which the paper has for few
        shots, the default one could diverge; so designs have the same rate everywhere.

        A winner's epochs are those after a race of as many images as VTAB-1k has, in which no design stopped before its place
        was gone.
        """
        from peft_noah.training import TrainingSettings

        supernet_epochs = self.supernet_epochs
        if supernet_epochs is None:
            supernet_epochs = max(1, round(5 * self.epochs * self._share))
        epochs = {"supernet": supernet_epochs}.get(stage, self.epochs)
        if stage == "winner":
            epochs = winner_epochs(self.race_effort, heats_cost(self.race().rungs, self.epochs), self.epochs)
        is_design = stage in ("design", "winner")
        return TrainingSettings.named(
            self.recipe,
            "subnet" if is_design else stage,
            "vtab" if is_design else self.protocol,
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
    def race_effort(self) -> float:
        """What a race costs at most with its winner, in fine-tunes."""
        return EFFORT if self.effort is None else self.effort

    def race(self, designs: int | None = None, labels: Sequence[int] | None = None) -> RaceSettings:
        """The settings of the race.

        Args:
            designs: how many take part; None: all.
            labels: class index of each labelled image; None: as many images as VTAB-1k has, in two folds.
        """
        designs = len(self.raced) if designs is None else designs
        if labels is None:
            return RaceSettings(rungs=rungs_within(self.race_effort, self.epochs, designs))
        folds, batch_size = folds_for(labels), self.training("subnet").batch_size
        designs = designs if can_score(labels) else 1
        rungs = rungs_within(
            self.race_effort, self.epochs, designs, images=len(labels), folds=folds, batch_size=batch_size
        )
        return RaceSettings(rungs=rungs, folds=folds)

    @property
    def raced(self) -> tuple[Design, ...]:
        """The designs that a race begins with, the default first."""
        return tuple(map(Design.from_dict, self.designs)) if self.designs else PORTFOLIO

    @property
    def reading(self) -> dict[str, str]:
        """How the dataset is read, where that was asked for: keyword arguments of `read_listings`, but for what chooses
        images."""
        names = ("image_column", "text_column", "label_column", "dataset_config")
        names = (*names, "train_split", "validation_split", "test_split")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def space(self, num_blocks: int) -> str | SearchSpace:
        """What a supernet on a backbone of ``num_blocks`` blocks samples from; a name alone leaves the rows to the backbone.

        Raises:
            ValueError: if the space is for another number of blocks.
        """
        return build_space(self.search_space, self.modules, num_blocks)

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
        if self.model is None and self.task != IMAGES:
            raise ValueError(
                f"{self.task} needs a model: none for it comes with the package. Give a folder, or a Hub id."
            )
        if self.model is None:
            from peft_noah.data import bundled_backbone

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
            data = brought_up_to_date(data)
        if not isinstance(data, dict) or set(data) - known:
            raise ValueError(f"expected an object with {', '.join(sorted(known))}.")
        return cls(**data)
