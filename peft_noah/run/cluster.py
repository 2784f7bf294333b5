"""Work on other machines, by Ray: a function and plain data go out, what it gives comes back.

Ray places the work, spreads it, and begins it again elsewhere where a node dies. Only what connects imports Ray.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from peft_noah.jsonfile import MAX_COUNT, check_int, check_number
from peft_noah.run.quiet import quiet
from peft_noah.training.interruption import SIGNALS, Interrupted, Interruption

KNOCK_SECONDS = 10.0
#: between two looks for a signal
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each piece of work gets of it.

    Args:
        address: ``"auto"``: the cluster that this machine belongs to; ``"local"``: this machine alone; else ``HOST:PORT`` of
            the head.
        gpus_per_cell: GPUs of each piece, 0 to 1; None: 1 if a node has one, else 0. A piece is one process on one GPU.
        cpus_per_cell: CPU cores of each piece, which are its threads too.

    Raises:
        ValueError: a number is out of range, or the address is none.
    """

    address: str = "auto"
    gpus_per_cell: float | None = None
    cpus_per_cell: int = 1

    def __post_init__(self) -> None:
        if self.gpus_per_cell is not None:
            check_number(self.gpus_per_cell, "gpus_per_cell", 0, 1)
        check_int(self.cpus_per_cell, "cpus_per_cell", 1, MAX_COUNT)
        if self.address not in ("auto", "local") and not re.fullmatch(r"[^/\s]+:\d{1,5}", self.address):
            raise ValueError(
                f"the address of a cluster is auto, local or HOST:PORT of its head, got {self.address!r}."
            )

    @contextmanager
    def connected(self) -> Iterator[Pool]:
        """The cluster's pool, for the time of a ``with``; all its work ends with it, finished or not.

        Raises:
            Interrupted: SIGINT or SIGTERM came.
            ValueError: Ray is not installed, no cluster answers, or no node is large enough for a piece.
        """
        ray = _import_ray()
        in_main = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in SIGNALS} if in_main else {}
        ours = not ray.is_initialized()
        try:
            if ours:
                self._knock()
                ray.init(self.address, logging_level="warning")
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"no Ray cluster answers at {self.address!r} ({error}). Start one with 'ray start --head', or give 'local' for "
                "this machine alone."
            ) from error
        finally:  # Ray takes SIGTERM for itself
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        try:
            with Interruption() as interruption:
                yield Pool(ray, interruption, self.gpus_among(ray.nodes()), self.cpus_per_cell)
        finally:
            if ours:
                ray.shutdown()

    def _knock(self) -> None:
        """Raise OSError where nothing listens at the address; Ray would try for minutes."""
        if self.address not in ("auto", "local"):
            host, _, port = self.address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()

    def gpus_among(self, nodes: list[dict[str, Any]]) -> float:
        """GPUs of a piece on these nodes, as `ray.nodes()` tells them.

        Raises:
            ValueError: none is large enough for a piece; Ray would wait for one for ever.
        """
        sizes = [node["Resources"] for node in nodes if node["Alive"]]
        gpus = self.gpus_per_cell
        if gpus is None:
            gpus = float(any(size.get("GPU", 0) >= 1 for size in sizes))
        if not any(size.get("GPU", 0) >= gpus and size.get("CPU", 0) >= self.cpus_per_cell for size in sizes):
            found = ", ".join(f"{size.get('CPU', 0):g} CPUs and {size.get('GPU', 0):g} GPUs" for size in sizes)
            raise ValueError(
                f"a cell is to get {self.cpus_per_cell} CPUs and {gpus:g} GPUs, and no node of the Ray cluster has as many "
                f"(they have {found}). Give fewer with --cpus-per-cell and --gpus-per-cell, or start such a node first."
            )
        return gpus


@dataclass(frozen=True)
class Event:
    """What happened to a piece of work.

    Attributes:
        key: the piece.
        node: Ray's id of the node that has begun it; None: it has ended.
        value: what its function gave.
        error: what its function raised, or what Ray says of a piece that was lost too often.
    """

    key: Hashable
    node: str | None = None
    value: Any = None
    error: Exception | None = None


class Pool:
    """Hands pieces of work to Ray, and tells what happens to them; made by `Cluster.connected`."""

    def __init__(self, ray: Any, interruption: Interruption, gpus: float, cpus: int) -> None:
        self._ray, self._interruption = ray, interruption
        self._remote = ray.remote(num_gpus=gpus, num_cpus=cpus)(_work)
        self._pieces: dict[Any, tuple[Hashable, bool]] = {}  # by Ray's generator: the piece, and whether it has begun

    def __bool__(self) -> bool:
        """Whether pieces are out."""
        return bool(self._pieces)

    def submit(self, key: Hashable, function: Callable[[Any], Any], data: Any) -> None:
        """Let ``function(data)`` run somewhere; Ray begins it again if its node or its process dies, but not if it raises."""
        self._pieces[self._remote.options(name=str(key)).remote(function, data)] = key, False

    def map(self, function: Callable[[Any], Any], data: Sequence[Any]) -> Iterator[Any]:
        """What a function gives for each piece of data, in their order; raises what it raises. Nothing else may be out."""
        names = [f"{function.__name__} {index}" for index in range(len(data))]
        for name, one in zip(names, data, strict=True):
            self.submit(name, function, one)
        done: dict[Hashable, Any] = {}
        for name in names:
            while name not in done:
                event = self.next()
                if event.error is not None:
                    raise event.error
                if event.node is None:
                    done[event.key] = event.value
            yield done.pop(name)

    def next(self) -> Event:
        """Wait for the next event: a piece has begun, or has ended."""
        found: list[Any] = []
        while not found:
            self._interruption.check()
            found, _ = self._ray.wait(list(self._pieces), num_returns=1, timeout=LOOK_SECONDS, fetch_local=False)
        ready = found[0]
        key, begun = self._pieces.pop(ready)
        try:
            value = self._ray.get(next(ready))
        except Exception as error:
            return Event(key, error=_as_raised(error))
        if begun:
            return Event(key, value=value)
        self._pieces[ready] = key, True
        return Event(key, node=value)


def _import_ray() -> ModuleType:
    # by name, because the package runs without it
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            f"work on a cluster needs Ray, which cannot be imported ({error}). Install it by pip install 'peft-noah[ray]'."
        ) from error


def _as_raised(error: Exception) -> Exception:
    """The error that a function raised on a node, with Ray's account of it, traceback included, as its cause."""
    raised = getattr(error, "cause", None)
    if not isinstance(raised, Exception):
        return error
    raised.__cause__ = RuntimeError(getattr(error, "traceback_str", str(error)))
    return raised


def _work(function: Callable[[Any], Any], data: Any) -> Iterator[Any]:
    """On a node: which it is, then what the function gives."""
    quiet()
    yield _import_ray().get_runtime_context().get_node_id()
    try:
        value = function(data)
    except Interrupted as stopped:  # the node is being taken away; an exception would tell Ray that the work is to end
        os._exit(stopped.exit_code)
    yield value
