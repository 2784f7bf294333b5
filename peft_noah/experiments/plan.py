"""What a suite is asked to do: tasks x methods x seeds as plain data, and what each cell of it costs.

The unit of cost is a fine-tune: a training of one module alone for ``epochs`` epochs on the training images. An image that
is classified costs one pass. An image that is trained on costs two: forward and backward. It costs three where the
backbone's own weights train, and one for a linear probe, which has no backward pass through the backbone.
"""

from __future__ import annotations

import os
import reprlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from peft_noah.architecture import Architecture
from peft_noah.experiments.cells import Cell
from peft_noah.experiments.result_files import PLAN
from peft_noah.experiments.tasks import Task
from peft_noah.jsonfile import check_keys, dump_json, load_json, write_atomically
from peft_noah.run.designs import check_distinct, designs_among
from peft_noah.run.methods import INHERITED, SEARCH
from peft_noah.run.registry import (
    Method,
    Stage,
    all_methods,
    find_method,
    method_of_entry,
    method_of_row,
    strategies,
    table_order,
    transfer,
)
from peft_noah.run.settings import EPOCHS, RunSettings
from peft_noah.searching.design import Design

#: of a suite of a user's own tasks, where epochs is left out: six small tasks, all methods and three seeds end within three
#: hours on two CPU cores
QUICK = {"epochs": 10, "effort": 3.0}


def suite_settings(tasks: Iterable[Task], **options: Any) -> RunSettings:
    """The settings that all runs of a suite share.

    Args:
        tasks: of the suite.
        **options: fields of `RunSettings`. Without ``epochs`` the tasks of a published benchmark have those of the paper, and
            a user's own have few, with a lower effort where nothing says how long supernet and search take.
    """
    length = {"epochs": EPOCHS}
    if all(task.published is None for task in tasks):
        asked = any(options.get(name) is not None for name in ("effort", "supernet_epochs", "generations"))
        length = {"epochs": QUICK["epochs"]} if asked else QUICK
    if options.get("epochs") is None:
        options = {**options, **length}
    if not isinstance(options.get("search_space", ""), str):
        options = {**options, "strategy": "noah"}  # a race has no search space, and would refuse one
    return RunSettings(**{"baselines": (), "strategy": "race", **options})


@dataclass(frozen=True)
class Plan:
    """Tasks x methods x seeds, and the settings that all cells share; saved as suite.json.

    Args:
        tasks: what to run on.
        methods: names of methods, as tables have them.
        seeds: repeats.
        run: the settings of every run but for its task and seed.
        transfer: also retrain the architecture found on each task on every other one.
        architectures: further architectures to retrain on every task, by what tables call them.
        designs: those of ``methods`` that are designs of the user's own.

    Raises:
        ValueError: nothing to do, an unknown method, a task twice, or a seed that cannot be.
    """

    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    run: RunSettings
    transfer: bool = False
    architectures: Mapping[str, Architecture] = field(default_factory=dict)
    designs: tuple[Design, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("tasks", self.tasks), ("seeds", self.seeds)):
            if not values:
                raise ValueError(f"a suite needs one or more {name}.")
        for seed in self.seeds:
            replace(self.run, seed=seed)  # it checks
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.method(name).name for name in self.methods)))
        names = [task.full_name for task in self.tasks]
        for name in names:  # a plan may come from a stranger, and each name becomes a folder inside the suite's
            if not isinstance(name, str) or not name or name.startswith(".") or PureWindowsPath(name).name != name:
                raise ValueError(f"task {reprlib.repr(name)} cannot be the name of a folder. Give a plain name.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"these tasks stand twice in the suite: {', '.join(twice)}. Give each a name of its own.")
        if not (self.methods or self.transfer or self.architectures):
            raise ValueError("a suite needs one or more methods.")

    # ------------------------------------------------------------------ cells

    def cells(self) -> Iterator[Cell]:
        """All cells: every task with the first seed before any with the second; sources before their transfers."""
        for seed in self.seeds:
            for task in self.tasks:
                # NOAH first: it is what others wait for
                yield from (task.cell(method, seed) for method in sorted(self.methods, key=self._order))
        for seed in self.seeds:
            for task in self.tasks:
                yield from (task.cell(transfer(source).name, seed) for source in self.sources(task))

    def method(self, name: str) -> Method:
        """The method of this name; one that is a design's knows the design."""
        own = {method.name: method for method in map(method_of_entry, self.designs)}
        return own.get(name) or find_method(name)

    def _order(self, name: str) -> tuple[int, tuple[int, str]]:
        stages = list(dict.fromkeys(method.needs for method in all_methods() if method.needs is not None))
        # the search before the random search, and what needs no stage last
        needs = self.method(name).needs
        return len(stages) if needs is None else stages.index(needs), table_order(name)

    def task(self, full_name: str) -> Task:
        """The task of this name."""
        return next(task for task in self.tasks if task.full_name == full_name)

    def sources(self, task: Task) -> list[str]:
        """Where the architectures that are tried on a task come from."""
        others = [other.full_name for other in self.tasks if other != task] if self.transfer else []
        return [*self.architectures, *others]

    def settings(self, cell: Cell) -> RunSettings:
        """The settings of the run that a cell belongs to."""
        task = self.task(cell.full_task)
        return replace(
            self.run,
            dataset=task.dataset,
            task_name=task.name,
            group=task.group or None,
            num_classes=task.num_classes,
            shots=task.shots,
            augment=task.augment,
            search_space=self._search_space(task),
            other_tests=dict(task.other_tests) or None,
            seed=cell.seed,
            baselines=(),
        )

    def _search_space(self, task: Task) -> str | Mapping[str, object]:
        """The space that was asked for, else the one that goes with a task."""
        asked = self.run.search_space
        return task.search_space if asked == "vtab" else asked

    @property
    def strategies(self) -> set[str]:
        """The strategies of a run on whose stages something in this plan builds."""
        stages = {stage for name in self.methods for stage in self.method(name).stages}
        if any(self.searched(cell) is not None for cell in self.cells()):
            stages |= set(SEARCH.chain)
        return {
            name for name, methods in strategies().items() if any(stages & set(method.stages) for method in methods)
        }

    def searched(self, cell: Cell) -> Cell | None:
        """The cell whose search a transfer takes its architecture from; None for any other cell, or a given architecture."""
        if cell.source is None or cell.source in self.architectures:
            return None
        return self.task(cell.source).cell(INHERITED.name, cell.seed)

    # ------------------------------------------------------------------ cost

    def costs(
        self, cells: Iterable[Cell], sizes: Callable[[str], Mapping[str, int]], paid: Mapping[str, Collection[str]]
    ) -> list[float]:
        """Cost of each of some cells in fine-tunes, taken in this order: what one has done, none after it pays again.

        Args:
            cells: which.
            sizes: gives, by the full name of a task, its number of images by split.
            paid: names of stages and methods that are done already, by run folder.
        """
        done, costs = defaultdict(set, {folder: set(names) for folder, names in paid.items()}), []
        for cell in cells:
            costs.append(self.cost(cell, sizes(cell.full_task), done[cell.run_folder]))
            done[cell.run_folder] |= method_of_row(cell.method).parts
            if (source := self.searched(cell)) is not None:  # in the run of the other task
                theirs = _all_sizes(sizes(source.full_task))
                passes = self._stage_passes(SEARCH, theirs, done[source.run_folder])
                costs[-1] += passes / self._fine_tune(theirs)
                done[source.run_folder] |= {stage.name for stage in SEARCH.chain}
        return costs

    def cost(self, cell: Cell, sizes: Mapping[str, int], done: Collection[str] = ()) -> float:
        """Cost of a cell in fine-tunes of its task; of a transfer, without the search on the other task.

        Args:
            cell: which one.
            sizes: number of images by split; a test split may be missing.
            done: names of stages and methods of the cell's run folder that it need not pay.
        """
        sizes = _all_sizes(sizes)
        return self._passes(method_of_row(cell.method), sizes, done) / self._fine_tune(sizes)

    def _fine_tune(self, sizes: Mapping[str, int]) -> float:
        """The unit of cost, in passes of images."""
        return 2 * self.run.epochs * sizes["train"]

    def _stage_passes(self, last: Stage, sizes: Mapping[str, int], done: Collection[str]) -> float:
        return sum(stage.passes(self.run, sizes) for stage in last.chain if stage.name not in done)

    def _passes(self, method: Method, sizes: Mapping[str, int], done: Collection[str]) -> float:
        if method.best_of:
            others = [find_method(name) for name in method.best_of if name not in done]
            return sum(self._passes(other, sizes, done) for other in others)
        passes = sizes["validation"] + sizes["test"]
        if method.training is not None:  # on train + validation, and before on train where no stage has measured it
            trained_on = sizes["train"] + sizes["validation"] + (sizes["train"] if method.validation is None else 0)
            passes += method.passes * self.run.training(method.training).epochs * trained_on
        return passes + (0.0 if method.needs is None else self._stage_passes(method.needs, sizes, done))

    # ------------------------------------------------------------------ file

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write suite.json, all of it or nothing."""
        data = {
            "run": asdict(self.run),
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "transfer": self.transfer,
            "architectures": {name: rows.to_dict() for name, rows in self.architectures.items()},
            "designs": [design.to_dict() for design in self.designs],
            "tasks": [asdict(task) for task in self.tasks],
        }
        write_atomically(Path(folder) / PLAN, dump_json(data))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Plan:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the folder holds no suite, or its file is broken.
        """
        path = Path(folder) / PLAN
        if not path.exists():
            raise ValueError(
                f"{os.fspath(folder)} holds no suite: {PLAN} is missing. Start one with 'peft-noah suite'."
            )
        return load_json(path, cls.from_dict, "a suite")

    @classmethod
    def from_dict(cls, data: object) -> Plan:
        """The plan that :meth:`save` wrote.

        Raises:
            ValueError: it is none.
        """
        keys = ("run", "methods", "seeds", "transfer", "architectures", "designs", "tasks")
        data = {"designs": [], **data} if isinstance(data, Mapping) else data
        check_keys(data, keys, "a suite")
        try:
            return cls(
                tasks=tuple(_task(task) for task in data["tasks"]),
                methods=tuple(data["methods"]),
                seeds=tuple(data["seeds"]),
                run=RunSettings.from_dict(data["run"]),
                transfer=bool(data["transfer"]),
                architectures={name: Architecture(rows) for name, rows in data["architectures"].items()},
                designs=designs_among(data["designs"]),
            )
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"an entry of it has another form ({error!r}).") from error

    def joined(self, earlier: Plan) -> Plan:
        """This plan and an earlier one together: a suite may grow by tasks, methods, seeds and architectures.

        Raises:
            ValueError: the runs have other settings, or a task or architecture of the same name is another.
        """
        if changed := self.run.differences(earlier.run):
            raise ValueError(
                f"the suite was started with other {', '.join(changed)}. Choose another --output, or the same settings."
            )
        known, tasks = ({task.full_name: task for task in plan.tasks} for plan in (earlier, self))
        if other := _changed(known, tasks):
            raise ValueError(f"the suite has other tasks by the names {', '.join(other)}. Choose another --output.")
        if other := _changed(earlier.architectures, self.architectures):
            raise ValueError(
                f"the suite has other architectures by the names {', '.join(other)}. Give their files other names."
            )
        mine, theirs = ({design.name: design for design in plan.designs} for plan in (self, earlier))
        if other := _changed(theirs, mine):
            raise ValueError(f"the suite has other designs by the names {', '.join(other)}. Name these differently.")
        return replace(
            self,
            designs=check_distinct({**theirs, **mine}.values()),
            tasks=tuple({**known, **tasks}.values()),
            methods=_union(earlier.methods, self.methods),
            seeds=_union(earlier.seeds, self.seeds),
            transfer=self.transfer or earlier.transfer,
            architectures={**earlier.architectures, **self.architectures},
        )


def _all_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: sizes.get(name, 0) for name in ("train", "validation", "test")}


def _task(data: Mapping[str, object]) -> Task:
    return Task(**{**data, "other_num_classes": tuple(data["other_num_classes"])})


def _changed(earlier: Mapping, now: Mapping) -> list:
    """The names that both have, for different things."""
    return [name for name, value in now.items() if earlier.get(name, value) != value]


def _union(first: Iterable, second: Iterable) -> tuple:
    return tuple(dict.fromkeys([*first, *second]))
