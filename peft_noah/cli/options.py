"""The options of commands, made from the fields of `RunSettings`, and what a user sees of an error."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from peft_noah.plugins import import_plugins, read_plugin_names
from peft_noah.run.options import help_of, typed_as
from peft_noah.run.registry import Method
from peft_noah.run.settings import RunSettings

if TYPE_CHECKING:
    from peft_noah.run.cluster import Cluster


@dataclass
class Commands:
    """The commands of a file: functions, each with the example that ends its help."""

    found: list[tuple[Callable, str]] = field(default_factory=list)

    def add(self, example: str) -> Callable[[Callable], Callable]:
        """Decorator: make a function a command, which takes ``--plugin`` and whose errors are sentences."""

        def decorate(command: Callable) -> Callable:
            command = clear_errors(with_plugins(command))
            self.found.append((command, f"Example: {example}"))
            return command

        return decorate


def option(kind: Any, default: Any, help: str) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(help=help)], default


def help_on(methods: Sequence[Method]) -> str:
    """The names of methods, and what each does."""
    return "; ".join(f"{method.option} ({method.help})" for method in methods) + "."


def _run_options() -> dict[str, tuple[Any, Any]]:
    """The options of a run by their names on the command line, from the fields of `RunSettings`."""
    kinds, found = get_type_hints(RunSettings), {}
    for one in fields(RunSettings):
        if (text := help_of(one)) is not None:
            typed = typed_as(one, kinds[one.name])
            found[typed.name or one.name] = option(typed.kind, typed.default, text)
    return found


#: what a run is asked to do
RUN_OPTIONS = {**_run_options(), "output": option(Path, Path("noah-run"), "New folder for the run.")}
#: those of them that say what data and model are read
DATA_OPTIONS = {
    name: entry
    for name, entry in RUN_OPTIONS.items()
    if name in ("model", "dataset", "dataset_config", "max_tokens")
    or name.startswith("image_")
    or name.endswith(("_column", "_split"))
}

#: where pieces of work are run
CLUSTER_OPTIONS = {
    "ray": option(
        str | None,
        None,
        "Run cells on a Ray cluster: auto (that of this machine), HOST:PORT of its head, or local (this machine alone).",
    ),
    "gpus_per_cell": option(float | None, None, "With --ray: 0 to 1. Default: 1 where a node has a GPU."),
    "cpus_per_cell": option(int | None, None, "With --ray: CPU cores, which are threads too. Default: 1."),
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


def with_plugins(command: Callable) -> Callable:
    """Let a command take ``--plugin``: what it names is imported before anything else is done."""
    keeps = "plugin" in inspect.signature(command).parameters  # as a setting of the run

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import_plugins(read_plugin_names(kwargs["plugin"] if keeps else kwargs.pop("plugin")))
        return command(*args, **kwargs)

    return with_options({"plugin": RUN_OPTIONS["plugin"]})(wrapped)


def clear_errors(command: Callable) -> Callable:
    """Errors of the user become one sentence and exit code 2, a signal one and 128 + its number; else a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from peft_noah.run.folder import Busy
        from peft_noah.training import NonFiniteLossError
        from peft_noah.training.interruption import Interrupted, interruptible

        try:
            with interruptible():
                check_finite(kwargs)
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


def check_finite(options: Mapping[str, Any]) -> None:
    """Refuse what a shell may be given for a number and is none.

    Raises:
        ValueError: an option is NaN or infinite.
    """
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give a finite number.")


def _expanded(value: Any) -> Any:
    """A path, or each of a list of them, with ``~`` expanded: no shell does so in ``--output=~/run``."""
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return value.expanduser() if isinstance(value, Path) else value


def read_cluster(options: dict[str, Any]) -> Cluster | None:
    """Take the cluster that was typed out of the options; None: there is none.

    Raises:
        ValueError: a number is out of range, or there is no cluster that it could be of.
    """
    from peft_noah.run.cluster import Cluster

    address = options.pop("ray")
    given = {name: value for name in ("gpus_per_cell", "cpus_per_cell") if (value := options.pop(name)) is not None}
    if address is None:
        if given:
            raise ValueError(
                f"--{next(iter(given)).replace('_', '-')} belongs to --ray: give it too, or leave both out."
            )
        return None
    return Cluster(address, **given)


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """The numbers in a text like ``0,1,2``.

    Raises:
        ValueError: if it is another.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} must be whole numbers like '0,1,2', got {text!r}.") from error


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `RunSettings` from what was typed.

    Raises:
        ValueError: if an option cannot be read.
    """
    kinds, values = get_type_hints(RunSettings), {}
    for one in fields(RunSettings):
        if help_of(one) is None:
            continue
        typed = typed_as(one, kinds[one.name])
        name = typed.name or one.name
        if name in options:
            values[one.name] = typed.read(options[name], name)
    return values
