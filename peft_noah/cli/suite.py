"""The commands for a suite of runs: run it, look at it, draw its tables and figures."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peft_noah.cli.options import (
    CLUSTER_OPTIONS,
    RUN_OPTIONS,
    Commands,
    help_on,
    read_cluster,
    read_options,
    whole_numbers,
    with_options,
)
from peft_noah.run.designs import designs_among, read_methods
from peft_noah.run.options import check_strategy
from peft_noah.run.quiet import quiet
from peft_noah.run.registry import all_methods, method_of_entry
from peft_noah.run.settings import OF_TEXTS, RunSettings

if TYPE_CHECKING:
    from peft_noah.architecture import Architecture
    from peft_noah.experiments.plan import Plan
    from peft_noah.experiments.suite import Progress, Suite
    from peft_noah.experiments.tasks import Task

commands = Commands()

ALL_METHODS = ",".join(method.option for method in all_methods())
#: the paper's
SHOTS = "1,2,4,8,16"
#: of a run, what the tasks decide
_OWN = ("dataset", "baselines", "seed", "shots", "augment", "other_test", "strategy", "task", *OF_TEXTS)
SUITE_OPTIONS = {name: option for name, option in RUN_OPTIONS.items() if name not in _OWN}

SuiteFolder = Annotated[Path, typer.Argument(help="Suite folder, as made by 'suite'.")]


@commands.add("peft-noah suite vtab-1k/ --model google/vit-base-patch16-224-in21k --output suites/vtab")
@with_options({**SUITE_OPTIONS, **CLUSTER_OPTIONS})
def suite(
    root: Annotated[
        Path, typer.Argument(help="Folder with one folder a task: VTAB-1k, few-shot sets, or any others.")
    ],
    *,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas, each a name or the JSON file of a design of your own; 'none' for transfers "
            f"only. {help_on(all_methods())}"
        ),
    ] = ALL_METHODS,
    seeds: Annotated[str, typer.Option(help="Repeats, separated by commas.")] = "0,1,2",
    tasks: Annotated[str | None, typer.Option(help="Tasks, separated by commas. Default: all that are found.")] = None,
    shots: Annotated[str, typer.Option(help="Training images per class of few-shot sets.")] = SHOTS,
    groups: Annotated[Path | None, typer.Option(help="JSON file with the group of each task.")] = None,
    transfer: Annotated[bool, typer.Option(help="Retrain each task's architecture on every other task.")] = False,
    architecture: Annotated[
        list[str], typer.Option(help="Retrain this one on every task; as for 'subnet'. May be repeated.")
    ] = [],  # noqa: B006 (typer reads the default)
    dry_run: Annotated[bool, typer.Option(help="List all cells, their parameters and cost; run nothing.")] = False,
    retry: Annotated[bool, typer.Option(help="Try broken cells again.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the suite; several processes may share it.")] = Path(
        "noah-suite"
    ),
    **options: Any,
) -> None:
    """Tasks x methods x seeds as one job that can be interrupted, repeated, and shared by processes and machines.

    Type the same command again to go on, or in another terminal to share the work; a finished cell is never run twice. With
    --ray one command runs the cells on all machines of a cluster.
    """
    quiet()
    from peft_noah.experiments.suite import Suite

    cluster, given = read_cluster(options), read_options(options)
    plan = _plan(root, methods, seeds, tasks, shots, groups, transfer, architecture, given)
    whole = Suite(output, plan)
    check_strategy(
        fields(RunSettings), given, whole.plan.strategies, f"--methods {methods}", "add a method of {} to --methods"
    )
    if transfer and len(whole.plan.tasks) == 1:
        raise ValueError("--transfer has no effect on a suite of one task: it takes architectures to every other one.")
    if dry_run:
        _show_cost(whole)
        return
    if cluster is None:
        found = whole.run(retry=retry)
    else:
        from peft_noah.experiments.spread import run_spread

        found = run_spread(whole, cluster, retry=retry)
    _show_progress(found)
    whole.reporter.say(f"draw tables and figures with: peft-noah tables {output}")
    if found.errors:
        raise typer.Exit(1)


def _plan(
    root: Path,
    methods: str,
    seeds: str,
    tasks: str | None,
    shots: str,
    groups: Path | None,
    transfer: bool,
    architectures: list[str],
    given: dict[str, Any],
) -> Plan:
    from peft_noah.experiments.detection import detect_tasks, read_groups
    from peft_noah.experiments.plan import Plan, suite_settings

    entries = read_methods(methods, "methods")
    found = detect_tasks(
        root,
        groups=None if groups is None else read_groups(groups),
        shots=whole_numbers(shots, "shots"),
    )
    found = found if tasks is None else _chosen(found, tasks.split(","))
    if shots != SHOTS and all(task.shots not in whole_numbers(shots, "shots") for task in found):
        raise ValueError(f"--shots {shots} has no effect: no task in {root} is of few-shot sets. Leave it out.")
    return Plan(
        tasks=found,
        methods=tuple(method_of_entry(entry).name for entry in entries),
        designs=designs_among(entries),
        seeds=whole_numbers(seeds, "seeds"),
        run=suite_settings(found, **given),
        transfer=transfer,
        architectures=_named(architectures),
    )


def _named(sources: list[str]) -> dict[str, Architecture]:
    """Architectures by what tables and files call them, which must tell them apart."""
    from peft_noah.run.architecture_source import read_architecture, source_label
    from peft_noah.run.names import slug

    found = {source_label(source): read_architecture(source) for source in sources}
    if len({slug(name) for name in found}) < len(sources):
        raise ValueError(
            f"the names of the architectures {', '.join(map(source_label, sources))} do not tell them apart. Give their "
            "files or folders other names."
        )
    return found


def _chosen(found: tuple[Task, ...], names: list[str]) -> tuple[Task, ...]:
    if unknown := [name for name in names if name not in {task.full_name for task in found}]:
        raise ValueError(f"no task is named {unknown[0]!r}; there are {', '.join(task.full_name for task in found)}.")
    return tuple(task for task in found if task.full_name in names)


@commands.add("peft-noah progress suites/vtab --watch")
def progress(
    folder: SuiteFolder,
    watch: Annotated[bool, typer.Option(help="Look again every ten seconds, until the suite has ended.")] = False,
) -> None:
    """Which cells of a suite are done, running, broken or open, and how long the rest will take."""
    from peft_noah.experiments.suite import Suite

    whole = Suite(folder)
    found = whole.progress()
    _show_progress(found)
    while watch and found.count("done") + found.count("failed") < len(found.states):
        time.sleep(10)
        found = whole.progress()
        _show_progress(found)


@commands.add("peft-noah tables suites/vtab --output paper/")
def tables(
    sources: Annotated[list[Path], typer.Argument(help="Suite or run folders, or .jsonl files of their results.")],
    output: Annotated[Path | None, typer.Option(help="Where to write. Default: tables/ beside the results.")] = None,
    paper: Annotated[bool, typer.Option(help="Add the paper's own Table 1, marked so.")] = False,
    jsonl: Annotated[Path | None, typer.Option(help="Also pack all results into this .jsonl file.")] = None,
) -> None:
    """Tables (Markdown, LaTeX, CSV) and figures of a suite, from its result files alone."""
    from peft_noah.experiments.output import write_tables
    from peft_noah.experiments.result_files import pack

    if jsonl is not None:
        pack(sources, jsonl)
        typer.echo(jsonl)
    beside = sources[0].parent if sources[0].is_file() else sources[0]
    for path in write_tables(sources, output or beside / "tables", paper=paper):
        typer.echo(path)


@commands.add("peft-noah rank runs/mine --architectures 20")
def rank(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, as made by 'run', 'supernet' or 'suite'.")],
    architectures: Annotated[int, typer.Option(help="Random architectures to train from scratch.")] = 20,
) -> None:
    """Whether inherited accuracy ranks architectures as retraining does: Kendall's tau; writes ranking.json."""
    quiet()
    from peft_noah.experiments.ranking import correlation, rank_architectures
    from peft_noah.run.context import RunContext

    typer.echo(correlation(rank_architectures(RunContext(run_folder), architectures)))


def _show_progress(found: Progress) -> None:
    from rich.console import Console

    from peft_noah.results.table import Number, Table

    rows = []
    for task in dict.fromkeys(cell.full_task for cell, _ in found.states):
        states = [(cell, state) for cell, state in found.states if cell.full_task == task]
        counts = [sum(state == kind for _, state in states) for kind in ("done", "failed", "open")]
        running = ", ".join(f"{cell.method} (seed {cell.seed})" for cell, state in states if state == "running")
        rows.append((task, *(Number(count, decimals=0) for count in counts), running))
    console = Console()
    console.print(Table("progress", "", ("task", "done", "failed", "open", "running"), tuple(rows)).to_rich())
    console.print(found.sentence(), highlight=False)
    for cell, error in found.errors:
        console.print(f"{cell}: {error}", markup=False, highlight=False)


def _show_cost(suite: Suite) -> None:
    from rich.console import Console

    from peft_noah.experiments.cost import cell_costs
    from peft_noah.results.table import Number, Table

    plan, console = suite.plan, Console()
    tasks = []
    for task in plan.tasks:
        found = suite.listings[task.full_name]
        counts = [len(found.label_names), *(found.sizes.get(split, 0) for split in ("train", "validation", "test"))]
        tasks.append((task.full_name, task.group, *(Number(count, decimals=0) for count in counts)))
    header = ("task", "group", "classes", "train", "validation", "test")
    console.print(Table("tasks", "", header, tuple(tasks)).to_rich())
    costs, seeds = cell_costs(suite), ", ".join(map(str, plan.seeds))
    cells = []
    for row in costs:
        parameters = Number(row.parameters, decimals=0)
        entry = parameters if row.exact else f"at most {parameters}"
        cells.append((row.cell.full_task, row.cell.method, seeds, entry, Number(row.cost)))
    header = ("task", "method", "seeds", "prompt parameters", "fine-tunes a seed")
    console.print(Table("cells", "", header, tuple(cells)).to_rich())
    console.print(
        f"{len(suite.cells)} cells, {sum(row.cost for row in costs) * len(plan.seeds):,.0f} fine-tunes in all. One is "
        f"{plan.run.epochs} epochs of one module alone on the training images. Supernet and search count once per task "
        "and seed.",
        highlight=False,
    )
    if (left := suite.progress().seconds_left) is not None:
        console.print(f"By the cells already done: about {left / 3600:.1f} h left on one process.", highlight=False)
