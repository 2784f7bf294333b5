"""The ``peft-noah`` command: one command for the whole job, and one for each of its stages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="peft-noah",
    help="Find the mix of LoRA, Adapter and VPT that suits your images, under a budget of parameters.",
    epilog="Example: peft-noah run --dataset my-images/ --model google/vit-base-patch16-224-in21k",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="Run folder, as made by 'run' or 'supernet'.")]


def _option(kind: Any, default: Any, help: str) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(help=help)], default


#: what data and model are read, shared by several commands
DATA_OPTIONS = {
    "model": _option(str | None, None, "Folder or Hub id of a ViT. Default: the bundled vit-tiny-64."),
    "dataset": _option(
        str | None,
        None,
        "Folder of parquet files or of images by split and class, or a Hub id. Default: the bundled task.",
    ),
    "image_size": _option(int | None, None, "Side in pixels. Default: the backbone's own."),
    "image_mean": _option(str | None, None, "Three numbers 'r,g,b'. Default: from the backbone's processor."),
    "image_std": _option(str | None, None, "Three numbers 'r,g,b'. Default: from the backbone's processor."),
    "image_column": _option(str | None, None, "Column of images. Default: found by its type."),
    "label_column": _option(str | None, None, "Column of labels. Default: found by its type."),
}
#: sized so that the whole job on the bundled task ends within five minutes on two CPU cores
BUNDLED = {"epochs": 10, "supernet_epochs": 30, "generations": 5}
#: what a run is asked to do, the fields of RunSettings
RUN_OPTIONS = {
    **DATA_OPTIONS,
    "recipe": _option(str, "paper", "paper, or released (the authors' code)."),
    "search_space": _option(str, "vtab", "vtab (dims 1, 5, 10) or few_shot (dims 5, 10, 50, 100)."),
    "budget": _option(
        int | None,
        None,
        "Most prompt parameters, classifier excluded. Default: the paper's 0.64 M scaled to the model.",
    ),
    "epochs": _option(int | None, None, "Epochs of subnet and baselines. Default: 100; for the bundled task 10."),
    "supernet_epochs": _option(
        int | None, None, "Epochs of the supernet. Default: 5 x epochs, as in the paper; bundled task: 30."
    ),
    "variant": _option(str, "default", "Search: default, paper or released."),
    "population_size": _option(int | None, None, "Candidates of a generation. Default: the variant's."),
    "generations": _option(int | None, None, "Rounds of the search. Default: the variant's; for the bundled task 5."),
    "seed": _option(int, 0, "Seed of everything random."),
    "mixed_precision": _option(str, "no", "no, fp16 or bf16, through Accelerate."),
    "output": _option(Path, Path("noah-run"), "New folder for the run."),
}


def _with_options(options: dict[str, tuple[Any, Any]]) -> Callable:
    """Give a command that takes ``**options`` these options, so that each is written down once."""

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
        taken = {parameter.name for parameter in own}
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in options.items()
            if name not in taken
        ]
        command.__signature__ = inspect.Signature([*own, *shared])
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        return command

    return decorate


def _clear_errors(command: Callable) -> Callable:
    """Errors of the user become one sentence and exit code 2; anything else keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from peft_noah.training import NonFiniteLossError

        try:
            return command(*args, **kwargs)
        except (ValueError, NonFiniteLossError, OSError) as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(2) from error

    return wrapped


def _quiet() -> None:
    """The backbone's new classifier is expected; transformers' report about it would only worry."""
    import logging
    import warnings

    import transformers

    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing` is deprecated"
    )  # PEFT's call, not the user's

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("peft_noah").setLevel(logging.INFO)


def _triple(text: str | None, name: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise ValueError(f"{name} must be three numbers like '0.5,0.5,0.5', got {text!r}.")
    return values


def _settings(**options: Any):
    from peft_noah.run import RunSettings

    baselines = options.pop("baselines", "none")
    options["baselines"] = () if baselines == "none" else tuple(baselines.split(","))
    for name, value in BUNDLED.items() if options["dataset"] is None else ():
        options[name] = options.get(name) or value
    options["epochs"] = options["epochs"] or 100
    for name in ("image_mean", "image_std"):
        options[name] = _triple(options[name], name)
    return RunSettings(**options)


def _open(folder: Path, settings: Any = None):
    _quiet()
    from peft_noah.run import Run

    return Run(folder, settings)


def _show(run: Any) -> None:
    from rich.console import Console

    if run.accelerator.is_main_process and (run.folder / "results.json").exists():
        Console().print(run.report().to_rich_table())


@app.command(epilog="Example: peft-noah run --dataset my-images/ --budget 300000 --output runs/mine")
@_clear_errors
@_with_options(RUN_OPTIONS)
def run(
    *,
    baselines: Annotated[
        str, typer.Option(help="Methods to compare with, separated by commas; 'none' for none.")
    ] = "linear,lora,adapter,vpt",
    **options: Any,
) -> None:
    """The whole job: supernet, search, subnet, baselines, table and figures.

    With no option it uses the bundled ViT and task, needs no network, and takes a few minutes on two CPU cores.
    """
    job = _open(options.pop("output"), _settings(baselines=baselines, **options))
    job.everything()
    _show(job)
    job.reporter.say(f"adapter, table and figures are in {job.folder}")


@app.command(epilog="Example: peft-noah supernet --dataset my-images/ --output runs/mine")
@_clear_errors
@_with_options(RUN_OPTIONS)
def supernet(**options: Any) -> None:
    """Start a run folder and train its supernet."""
    _open(options.pop("output"), _settings(**options)).supernet()


@app.command(epilog="Example: peft-noah search runs/mine")
@_clear_errors
def search(run_folder: RunFolder) -> None:
    """Search the trained supernet; writes search.json and the inherited adapter."""
    job = _open(run_folder)
    best = job.search().best
    job.inherit(best.architecture)
    job.reporter.say(f"best: {100 * best.score:.1f} % with {best.parameters:,} prompt parameters\n{best.architecture}")


@app.command(epilog="Example: peft-noah subnet runs/mine --architecture vtab/cifar100")
@_clear_errors
def subnet(
    run_folder: RunFolder,
    architecture: Annotated[
        str | None, typer.Option(help="Published name or JSON file. Default: the search's best.")
    ] = None,
) -> None:
    """Train an architecture from scratch; writes adapter/ and its row of the table."""
    from peft_noah.architecture import Architecture

    chosen = None
    if architecture is not None:
        is_file = Path(architecture).suffix == ".json"
        chosen = Architecture.load(architecture) if is_file else Architecture.published(architecture)
    job = _open(run_folder)
    job.subnet(chosen)
    _show(job)


@app.command(epilog="Example: peft-noah baseline runs/mine --method full")
@_clear_errors
def baseline(
    run_folder: RunFolder,
    method: Annotated[str, typer.Option(help="linear, lora, adapter, vpt or full.")] = "lora",
) -> None:
    """Train a baseline on the run's data; writes its row of the table."""
    job = _open(run_folder)
    job.baseline(method)
    _show(job)


@app.command(epilog="Example: peft-noah evaluate runs/mine/adapter --dataset my-images/ --split test")
@_clear_errors
@_with_options(DATA_OPTIONS)
def evaluate(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of a NOAH adapter.")],
    *,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    **options: Any,
) -> None:
    """Accuracy of a saved adapter on a split of a dataset, with its standard error."""
    _quiet()
    from peft_noah.run import evaluate_adapter

    accuracy, error, images = evaluate_adapter(adapter, _settings(epochs=None, **options), split)
    typer.echo(f"{100 * accuracy:.2f} % ± {100 * error:.2f} (standard error over {images:,} {split} images)")


@app.command(epilog="Example: peft-noah plot runs/mine")
@_clear_errors
def plot(run_folder: RunFolder) -> None:
    """Draw the figures of a run anew from its files."""
    from peft_noah.publish import draw_figures

    for path in draw_figures(run_folder):
        typer.echo(path)


@app.command(epilog="Example: peft-noah table runs/seed0 runs/seed1 runs/seed2")
@_clear_errors
def table(
    run_folders: Annotated[list[Path], typer.Argument(help="Run folders that differ in their seed only.")],
    markdown: Annotated[bool, typer.Option(help="Markdown instead of a table for the terminal.")] = False,
) -> None:
    """One table over several runs: means over seeds with their standard errors."""
    from rich.console import Console

    from peft_noah.report import RunReport

    reports = [RunReport.load(folder / "results.json") for folder in run_folders]
    merged = replace(reports[0], results=[result for report in reports for result in report.results])
    if len(reports) > 1:  # each seed found an architecture of its own
        merged = replace(merged, architecture=None, settings={**merged.settings, "seed": "as in the table"})
    if markdown:
        typer.echo(merged.to_markdown())
    else:
        Console().print(merged.to_rich_table())


def main() -> None:
    """Entry point of the console script and of ``python -m peft_noah``."""
    app()
