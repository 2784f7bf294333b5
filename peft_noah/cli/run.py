"""The commands for one run: the whole job, and each of its stages."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from peft_noah.cli.options import (
    CLUSTER_OPTIONS,
    DATA_OPTIONS,
    RUN_OPTIONS,
    Commands,
    help_on,
    option,
    read_cluster,
    read_options,
    with_options,
)
from peft_noah.run.designs import read_methods
from peft_noah.run.methods import CONTINUED, INHERITED, LORA, LORA_ALL, RACE, RACED, RETRAINED, SEARCH, SUPERNET
from peft_noah.run.options import check_strategy
from peft_noah.run.quiet import quiet
from peft_noah.run.registry import baselines as known_baselines
from peft_noah.run.registry import find_baseline, method_of_entry, transfer
from peft_noah.run.settings import RunSettings

commands = Commands()

RunFolder = Annotated[Path, typer.Argument(help="Run folder, as made by 'run' or 'supernet'.")]


CheckpointSeconds = Annotated[float, typer.Option(help="Seconds between two checkpoints of a training.")]
LogWith = Annotated[str | None, typer.Option(help="A tracker for losses and rates, such as tensorboard.")]


def _open(folder: Path, settings: Any = None, **options: Any):
    quiet()
    from peft_noah.run.context import RunContext

    return RunContext(folder, settings, **options)


def _check_strategy(given: dict[str, Any], strategy: str) -> None:
    check_strategy(fields(RunSettings), given, (strategy,), f"--strategy {strategy}", "give --strategy {}")


def _show(run: Any) -> None:
    """Print the table of results; they are in their files, whatever happens to the terminal."""
    from rich.console import Console

    if run.accelerator.is_main_process and (run.folder / "results.json").exists():
        try:
            Console().print(run.files.report().to_rich_table())
        except (OSError, UnicodeError) as error:
            logging.getLogger(__name__).warning("the table cannot be printed (%s); it is in results.md", error)


@commands.add("peft-noah run --dataset my-images/ --epochs 20 --output runs/mine")
@with_options({**RUN_OPTIONS, **CLUSTER_OPTIONS})
def run(
    *,
    checkpoint_seconds: CheckpointSeconds = 60.0,
    log_with: LogWith = None,
    **options: Any,
) -> None:
    """The whole job: the default design, a race of designs or a search in a supernet; table, figures, the best adapter in best/.

    With no option it uses the bundled ViT and task, needs no network, and takes a few minutes on two CPU cores. With --ray the
    designs of a race, and then all methods, are trained side by side on the machines of a cluster.
    """
    from peft_noah.run.best import find_best
    from peft_noah.run.stages import run_everything

    cluster, folder, given = read_cluster(options), options.pop("output"), read_options(options)
    _check_strategy(given, given["strategy"])
    if cluster is not None and log_with is not None:
        raise ValueError(
            "--log-with tracks what this process trains, and --ray trains elsewhere: log.jsonl has every step."
        )
    job = _open(folder, RunSettings(**given), checkpoint_seconds=checkpoint_seconds, log_with=log_with)
    if cluster is None:
        run_everything(job)
    else:
        from peft_noah.run.on_cluster import run_everything_on

        run_everything_on(cluster, job)
    _show(job)
    job.reporter.say(f"adapters, table and figures are in {job.folder}")
    if (best := find_best(job.folder)) is not None:
        job.reporter.say(best.sentence())


@commands.add("peft-noah supernet --dataset my-images/ --output runs/mine")
@with_options({name: entry for name, entry in RUN_OPTIONS.items() if name not in ("baselines", "strategy")})
def supernet(
    *,
    checkpoint_seconds: CheckpointSeconds = 60.0,
    log_with: LogWith = None,
    **options: Any,
) -> None:
    """Start a run folder of strategy noah, and train its supernet."""
    from peft_noah.run.stages import do_stages

    folder, given = options.pop("output"), read_options(options)
    _check_strategy(given, "noah")
    settings = RunSettings(**given, strategy="noah", baselines=())
    job = _open(folder, settings, checkpoint_seconds=checkpoint_seconds, log_with=log_with)
    do_stages(job, SUPERNET)


@commands.add("peft-noah search runs/mine")
def search(run_folder: RunFolder) -> None:
    """What the run's strategy searches with: a race of designs, or the trained supernet.

    Writes race.json; or search.json and the inherited adapter.
    """
    from peft_noah.run.stages import do_stages, run_method_alone

    job = _open(run_folder)
    if job.settings.strategy == LORA_ALL.strategy:
        raise ValueError(
            f"a run of strategy {LORA_ALL.strategy} has nothing to search. Start one with --strategy race or noah."
        )
    if job.settings.strategy == RACED.strategy:
        from peft_noah.run.race_board import describe_winner

        do_stages(job, RACE)
        job.reporter.say(describe_winner(RACE.run(job)))
        return
    do_stages(job, SEARCH)
    run_method_alone(job, INHERITED)
    best = SEARCH.run(job).best
    job.reporter.say(f"best: {100 * best.score:.1f} % with {best.parameters:,} prompt parameters\n{best.architecture}")


@commands.add("peft-noah subnet runs/mine --architecture vtab/cifar100")
def subnet(
    run_folder: RunFolder,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Instead of the search's best: a published name, a JSON file (architecture or search), a run or "
            "adapter folder, or an adapter's Hub id. Reported as a transfer."
        ),
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the supernet's weights instead of from scratch.")
    ] = False,
) -> None:
    """Train the architecture found on train + validation; writes its adapter and its row of the table."""
    from peft_noah.run.architecture_source import read_architecture, source_label
    from peft_noah.run.stages import run_method_alone

    if inherit and architecture is not None:
        raise ValueError("--inherit starts from the supernet's own weights: leave --architecture out.")
    method = CONTINUED if inherit else RETRAINED
    if architecture is not None:
        method = transfer(source_label(architecture), read_architecture(architecture))
    job = _open(run_folder)
    run_method_alone(job, method)
    _show(job)


@commands.add("peft-noah baseline runs/mine --method full")
def baseline(
    run_folder: RunFolder,
    method: Annotated[
        str, typer.Option(help=f"Its name, or the JSON file of a design of your own. {help_on(known_baselines())}")
    ] = LORA.option,
) -> None:
    """Train a baseline on the run's data; writes its row of the table."""
    from peft_noah.run.stages import run_method_alone

    (entry,) = read_methods(method, "method") or ("none",)
    chosen = find_baseline(entry) if isinstance(entry, str) else method_of_entry(entry)
    job = _open(run_folder)
    run_method_alone(job, chosen)
    _show(job)


@commands.add("peft-noah evaluate runs/mine/adapter --dataset my-images/ --split test")
@with_options(
    {
        **DATA_OPTIONS,
        "model": option(str | None, None, "Folder or Hub id of a ViT. Default: the adapter's own backbone."),
    }
)
def evaluate(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of a NOAH adapter.")],
    *,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    **options: Any,
) -> None:
    """Accuracy of a saved adapter on a split of a dataset, with its standard error."""
    quiet()
    from peft_noah.run.evaluation import evaluate_adapter
    from peft_noah.run.saved_adapter import adapter_task
    from peft_noah.run.tasks import TASKS

    task = adapter_task(adapter)
    accuracy, error, count = evaluate_adapter(adapter, RunSettings(**read_options(options), task=task), split)
    # the stream is named, or click would write UTF-8 where standard output is ASCII
    typer.echo(
        f"{100 * accuracy:.2f} % ± {100 * error:.2f} (standard error over {count:,} {split} {TASKS[task]})",
        file=sys.stdout,
    )


@commands.add("peft-noah plot runs/mine")
def plot(run_folder: RunFolder) -> None:
    """Draw the figures of a run anew from its files."""
    from peft_noah.run.publishing import draw_figures

    for path in draw_figures(run_folder):
        typer.echo(path)


@commands.add("peft-noah table runs/seed0 runs/seed1 runs/seed2")
def table(
    sources: Annotated[
        list[Path], typer.Argument(help="Run folders that differ in their seed only, or a .jsonl file of them.")
    ],
    markdown: Annotated[bool, typer.Option(help="Markdown instead of a table for the terminal.")] = False,
) -> None:
    """One table over several runs: means over seeds with their standard errors."""
    from rich.console import Console

    from peft_noah.experiments.result_files import load_reports
    from peft_noah.results.report import RunReport

    merged = RunReport.over_seeds(load_reports(sources))
    if markdown:
        typer.echo(merged.to_markdown())
    else:
        Console().print(merged.to_rich_table())
