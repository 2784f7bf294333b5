"""What a method of the table is, and the list of all methods in the order of tables; nothing here imports torch.

The methods of this package are in :mod:`peft_noah.run.methods`. One more is one call of `register_method`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peft_noah.architecture import Architecture
from peft_noah.plugins import note_registration
from peft_noah.run.names import slug
from peft_noah.searching.design import Design

if TYPE_CHECKING:
    from torch import nn

_TRANSFER = "transfer "
_DESIGN = "design "


class BackboneSource(Protocol):
    """What a method's model is made from: a run, or shapes alone where parameters are counted."""

    settings: Any

    def fresh_backbone(self) -> nn.Module:
        """The pretrained backbone with a new classifier."""


@dataclass(frozen=True)
class Stage:
    """Work in a run folder that methods build on; it is done once.

    Attributes:
        name: what stages.json calls it.
        file: the file or folder that it leaves in the run folder.
        run: does it, or reads what it left; it takes a `RunContext`.
        passes: its cost in images passed through the backbone, from the `RunSettings` and the number of images by split;
            an image that is trained on counts twice.
        after: the stage that must be done before.
        facts: what a model card says of it, from its file and the settings of the run's report; None: nothing.
        check: raises ValueError where the settings of a `RunContext` leave it nothing to do; called before anything is
            written. None: there is nothing to check.
        more: further files or folders that it leaves in the run folder for methods.
        spread: does it on other machines, from a `RunContext` and a function like `map`; None: it is one piece of work.
        is_over: says whether its file is of a stage that is done; None: it is written when the stage is.
    """

    name: str
    file: str
    run: Callable[[Any], Any]
    passes: Callable[[Any, Mapping[str, int]], float]
    after: Stage | None = None
    facts: Callable[[Path, Mapping[str, Any]], dict[str, object]] | None = None
    check: Callable[[Any], object] | None = None
    more: tuple[str, ...] = ()
    spread: Callable[[Any, Callable], Any] | None = None
    is_over: Callable[[Path], bool] | None = None

    def is_done(self, folder: Path) -> bool:
        """Whether it is done in a run folder, not only begun."""
        path = folder / self.file
        return path.exists() and (self.is_over is None or self.is_over(path))

    @property
    def chain(self) -> tuple[Stage, ...]:
        """All stages that must be done, in order; this one is the last."""
        return (*(self.after.chain if self.after else ()), self)


@dataclass(frozen=True)
class Method:
    """One way to adapt the backbone to the task: a row of the table.

    Attributes:
        name: what tables call it, such as ``"noah retrained"``; the command line takes ``noah-retrained`` too.
        help: what it does, in a few words.
        start: makes its model, from a run; None: it trains nothing of its own, see ``best_of``.
        needs: the stage that must be done first.
        training: which settings of the recipe it is trained with: ``"subnet"``, ``"full"``, ``"design"`` or
            ``"winner"``; None: it is not trained.
        validation: reads, from a run, the accuracy that its stage has measured on images that were not trained on, and
            the number of these images, or (None, 0) where none was; None: it is measured by a training on the training images
            alone.
        epochs: reads, from a run, for how many epochs it is trained; None: as long as the settings say.
        cost: says, from a run, what it has cost; a sentence below the table. None: nothing is said.
        keeps: the folder that keeps its adapter; None: no adapter is kept.
        weights: what a model card says of the weights.
        passes: cost of one training image in passes through the backbone: 2 for forward and backward, 3 where the
            backbone's own weights train too, 1 without a backward pass through the backbone.
        strategy: the strategy of a run that it belongs to; None: it is run where it is named.
        best_of: names of methods; this one is the one of them with the best validation accuracy.
        source: where the architecture of a transfer comes from.
        architecture: of a transfer.
        design: what a design of a user's own puts into the backbone.
    """

    name: str
    help: str
    start: Callable[[Any], nn.Module] | None = None
    needs: Stage | None = None
    training: str | None = "subnet"
    validation: Callable[[Any], tuple[float | None, int]] | None = None
    epochs: Callable[[Any], int] | None = None
    cost: Callable[[Any], str] | None = None
    keeps: str | None = None
    weights: str = "trained from scratch"
    passes: int = 2
    strategy: str | None = None
    best_of: tuple[str, ...] = ()
    source: str | None = None
    architecture: Architecture | None = None
    design: Design | None = None

    def __post_init__(self) -> None:
        if self.start is None and not self.best_of:
            raise ValueError(f"method {self.name!r} makes no model: give start, or best_of.")

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return self.name.replace(" ", "-")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages that must be done first, in order."""
        return () if self.needs is None else self.needs.chain

    @property
    def parts(self) -> set[str]:
        """What is done in a run folder when it is done: the names of its stages, of itself and of what it chooses from."""
        return {self.name, *self.best_of, *(stage.name for stage in self.stages)}

    @property
    def is_baseline(self) -> bool:
        """Whether it needs nothing but the backbone and the images."""
        return self.needs is None and self.source is None and not self.best_of


_methods: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Add a method to the end of the table; the command line, runs, suites, tables and figures know it then.

    Raises:
        ValueError: if the name is empty or taken, or its files would be those of another method.
    """
    files = slug(method.name)
    if not files or method.name != _plain(method.name) or method.name.startswith((_TRANSFER, _DESIGN)):
        raise ValueError(
            f"method {method.name!r} needs a name of small letters and single spaces, not beginning with 'transfer' or 'design'."
        )
    if files in map(slug, _methods):
        raise ValueError(f"method {method.name!r} is registered already. Give this one another name.")
    _methods[method.name] = method
    note_registration()
    return method


def unregister_method(name: str) -> None:
    """Take a method out of the table again."""
    del _methods[name]


def all_methods() -> tuple[Method, ...]:
    """Every method that has a name of its own, in the order of tables; transfers come after them."""
    return tuple(_methods.values())


def strategies() -> dict[str, tuple[Method, ...]]:
    """The methods that a run does besides baselines, by the name of its strategy."""
    names = dict.fromkeys(method.strategy for method in _methods.values() if method.strategy is not None)
    return {name: tuple(method for method in _methods.values() if method.strategy == name) for name in names}


def baselines() -> tuple[Method, ...]:
    """The methods that need nothing but the backbone and the images."""
    return tuple(method for method in _methods.values() if method.is_baseline)


def find_method(name: str) -> Method:
    """The method that a user names, as tables have it or with hyphens.

    Raises:
        ValueError: if there is no such method.
    """
    return _find(name, "method", all_methods())


def find_baseline(name: str) -> Method:
    """The baseline that a user names.

    Raises:
        ValueError: if there is no such baseline.
    """
    return _find(name, "baseline", baselines())


def _find(name: str, kind: str, among: tuple[Method, ...]) -> Method:
    found = {method.name: method for method in among}.get(_plain(name))
    if found is None:
        known = ", ".join(method.option for method in among)
        raise ValueError(
            f"{kind} {reprlib.repr(name)} is not known (known: {known}). One of your own needs --plugin, with the module that registers it; a design is named by its JSON file."
        )
    return found


def method_of_row(name: str) -> Method | None:
    """The method of a row of a table, also of a transfer or a design; None for one that is not registered here."""
    if name.startswith(_DESIGN):
        return _of_design(name)
    source = transfer_source(name)
    return _methods.get(name) if source is None else transfer(source)


def method_of_entry(entry: str | Mapping[str, object] | Design) -> Method:
    """The method that a user names, or that trains a design of theirs.

    Args:
        entry: a name, as `find_method` takes it; or a design, which may be plain data.

    Raises:
        ValueError: if there is no such method, or the data is no design.
    """
    if isinstance(entry, str):
        return find_method(entry)
    design = entry if isinstance(entry, Design) else Design.from_dict(entry)
    return _of_design(f"{_DESIGN}{design.name}", design)


def _of_design(name: str, design: Design | None = None) -> Method:
    """The method that trains a design; None: it is not needed, the method only names its files."""
    return Method(
        name,
        "a design of your own",
        partial(_add_design, design),
        training="design",
        keeps=f"adapter-{slug(name)}",
        design=design,
    )


def _add_design(design: Design, run: BackboneSource) -> nn.Module:
    from peft_noah.run.models import add_design

    return add_design(run.fresh_backbone(), design, run.settings.recipe)


def transfer(source: str, architecture: Architecture | None = None) -> Method:
    """The method that trains an architecture found elsewhere.

    Args:
        source: what tables call the place it comes from.
        architecture: one dim per module and block of the run's backbone; None: it is not needed, the method only names
            its files.
    """

    def start(run: BackboneSource) -> nn.Module:
        from peft_noah.run.models import add_modules

        return add_modules(run.fresh_backbone(), architecture, run.settings.recipe)

    name = f"{_TRANSFER}{source}"
    return Method(
        name,
        f"the architecture of {source}, trained from scratch",
        start,
        keeps=f"adapter-{slug(name)}",
        weights="retrained from scratch",
        source=source,
        architecture=architecture,
    )


def transfer_source(name: str) -> str | None:
    """Where the architecture of a row ``"transfer <source>"`` comes from; None for any other row."""
    return name.removeprefix(_TRANSFER) if name.startswith(_TRANSFER) else None


def table_order(name: str) -> tuple[int, str]:
    """Sorting key: where a row stands in a table."""
    names = list(_methods)
    return names.index(name) if name in _methods else len(names), name


def _plain(name: str) -> str:
    return " ".join(name.replace("-", " ").replace("_", " ").lower().split())
