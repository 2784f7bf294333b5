"""Options that commands share, how settings come from them, and what a user sees of an error."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from peft_noah.run.registry import Method


@dataclass
class Commands:
    """The commands of a file: functions, each with the example that ends its help."""

    found: list[tuple[Callable, str]] = field(default_factory=list)

    def add(self, example: str) -> Callable[[Callable], Callable]:
        """Decorator: make a function a command."""

        def decorate(command: Callable) -> Callable:
            self.found.append((command, f"Example: {example}"))
            return command

        return decorate


def option(kind: Any, default: Any, help: str) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(help=help)], default


def help_on(methods: Sequence[Method]) -> str:
    """The names of methods, and what each does."""
    return "; ".join(f"{method.option} ({method.help})" for method in methods) + "."


#: what data and model are read, shared by several commands
DATA_OPTIONS = {
    "model": option(str | None, None, "Folder or Hub id of a ViT. Default: the bundled vit-tiny-64."),
    "dataset": option(
        str | None,
        None,
        "Folder of images by (split and) class, of parquet files, or saved by datasets; or a Hub id. Default: the bundled "
        "task.",
    ),
    "image_size": option(int | None, None, "Side in pixels. Default: the backbone's own."),
    "image_mean": option(str | None, None, "Three numbers 'r,g,b'. Default: from the backbone's processor."),
    "image_std": option(str | None, None, "Three numbers 'r,g,b'. Default: from the backbone's processor."),
    "image_column": option(str | None, None, "Column of images. Default: found by its type."),
    "label_column": option(str | None, None, "Column of labels. Default: found by its type."),
    "dataset_config": option(str | None, None, "Which config of a dataset that has several."),
    "train_split": option(str | None, None, "Name of the training split. Default: train, in its usual spellings."),
    "validation_split": option(
        str | None, None, "Name of the validation split. Default: validation, val, valid or dev; else it is drawn."
    ),
    "test_split": option(str | None, None, "Name of the test split. Default: test; without one, no test accuracy."),
}
#: sized so that the whole job on the bundled task ends within five minutes on two CPU cores
BUNDLED = {"epochs": 10, "supernet_epochs": 30, "generations": 5}
#: what a run is asked to do, the fields of RunSettings
RUN_OPTIONS = {
    **DATA_OPTIONS,
    "recipe": option(str, "paper", "paper, or released (the authors' code)."),
    "search_space": option(str, "vtab", "vtab (dims 1, 5, 10) or few_shot (dims 5, 10, 50, 100)."),
    "budget": option(
        int | None,
        None,
        "Most prompt parameters, classifier excluded. Default: the paper's 0.64 M scaled to the model.",
    ),
    "epochs": option(
        int | None,
        None,
        "Epochs of subnet and baselines. Default: 100; for the bundled task, and for a suite of a user's own tasks, 10.",
    ),
    "supernet_epochs": option(
        int | None, None, "Epochs of the supernet. Default: 5 x epochs, as in the paper; bundled task: 30."
    ),
    "variant": option(str, "default", "Search: default, paper or released."),
    "population_size": option(int | None, None, "Candidates of a generation. Default: the variant's."),
    "generations": option(int | None, None, "Rounds of the search. Default: the variant's; for the bundled task 5."),
    "effort": option(
        float | None,
        None,
        "Cost of supernet, search and retraining in fine-tunes of --epochs; instead of --supernet-epochs and "
        "--generations. The paper's: 5.6.",
    ),
    "cache_gb": option(float, 1.0, "Memory for hidden states that candidates of the search share, in gigabytes."),
    "screen": option(
        bool,
        True,
        "Search in bfloat16 where the hardware has it, and in float32 where rounding could change an answer.",
    ),
    "seed": option(int, 0, "Seed of everything random."),
    "shots": option(int | None, None, "Training images per class. Default: all."),
    "augment": option(bool, False, "Colour jitter and RandAugment on training images, as for few-shot learning."),
    "other_test": option(list[str], [], "A further test set as NAME=FOLDER or NAME=HUB-ID; may be repeated."),
    "mixed_precision": option(
        str | None, None, "no, fp16 or bf16. Default: what 'accelerate launch' or its environment says, else no."
    ),
    "compile": option(
        bool | None,
        None,
        "Compile what is trained, with CUDA graphs: for a GPU; takes a minute or two for each model. Default: what "
        "'accelerate launch' says.",
    ),
    "accumulate": option(
        int | None,
        None,
        "Micro-batches per step and process, to save memory. Default: what Accelerate's environment says, else 1.",
    ),
    "sampling": option(
        str, "shared", "With several processes: shared (one subnet per step), or per-process (each its own)."
    ),
    "output": option(Path, Path("noah-run"), "New folder for the run."),
}


def with_options(options: dict[str, tuple[Any, Any]]) -> Callable:
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


def clear_errors(command: Callable) -> Callable:
    """Errors of the user become one sentence and exit code 2, a signal one and 128 + its number; else a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from peft_noah.run.folder import Busy
        from peft_noah.training import NonFiniteLossError
        from peft_noah.training.interruption import Interrupted, interruptible

        try:
            with interruptible():
                return command(*map(_expanded, args), **{name: _expanded(value) for name, value in kwargs.items()})
        except BrokenPipeError:  # whoever read the output has seen enough: typer ends the command without a word
            raise
        except (ValueError, NonFiniteLossError, OSError, Busy) as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(2) from error
        except Interrupted as stopped:
            typer.echo(stopped, err=True)
            raise typer.Exit(stopped.exit_code) from stopped

    return wrapped


def _expanded(value: Any) -> Any:
    """A path, or each of a list of them, with ``~`` expanded: no shell does so in ``--output=~/run``."""
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return value.expanduser() if isinstance(value, Path) else value


def quiet() -> None:
    """The backbone's new classifier is expected; transformers' report about it would only worry."""
    import logging
    import warnings

    import transformers

    # PEFT's call, not the user's
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("peft_noah").setLevel(logging.INFO)


def _pairs(texts: Sequence[str], name: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (left, _, right) in zip(texts, pairs, strict=True) if not (left and right)]:
        raise ValueError(f"{name} must be NAME=SOURCE, got {wrong[0]!r}.")
    return {left: right for left, _, right in pairs}


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """The numbers in a text like ``0,1,2``.

    Raises:
        ValueError: if it is another.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} must be whole numbers like '0,1,2', got {text!r}.") from error


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


def run_settings(**options: Any):
    """`RunSettings` from a command's options.

    Raises:
        ValueError: if an option cannot be read, or its value is not allowed.
    """
    from peft_noah.run.settings import RunSettings

    baselines = options.pop("baselines", "none")
    options["baselines"] = () if baselines == "none" else tuple(baselines.split(","))
    for name, value in BUNDLED.items() if options.get("dataset") is None else ():
        if options.get(name) is None and (name == "epochs" or options.get("effort") is None):
            options[name] = value
    if options.get("epochs") is None:
        options["epochs"] = 100
    options["other_tests"] = _pairs(options.pop("other_test", ()), "other_test") or None
    for name in ("image_mean", "image_std"):
        options[name] = _triple(options.get(name), name)
    return RunSettings(**options)
