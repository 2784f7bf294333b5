"""Accelerate's processes, as every stage of a run uses them.

Several GPUs or machines need no code of their own, only a launcher around the same command (but for a suite and a
ranking, whose cells are shared by typing the command several times)::

    accelerate launch --multi_gpu --num_processes 8 -m peft_noah run ...
    torchrun --nproc_per_node 8 -m peft_noah run ...

On several machines each runs one launcher, and all see the same run folder::

    torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr host0 --master_port 29500 -m peft_noah run ...
    torchrun --nnodes 2 --node_rank 1 --nproc_per_node 8 --master_addr host0 --master_port 29500 -m peft_noah run ...

Without a GPU the same commands start processes on the CPU (``accelerate launch --cpu`` starts one process, whatever
``--num_processes`` says: that mode is for MPI).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs, TorchDynamoPlugin, gather_object

logger = logging.getLogger(__name__)

#: what a run can compute in
PRECISIONS = ("no", "fp16", "bf16")
#: the mode of a compiler that is not to run, whatever the launcher was told
OFF = "off"
#: by which a process knows that a launcher has started others beside it
_LAUNCHED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def make_accelerator(mixed_precision: str | None = None, compile_mode: str | None = None, **kwargs) -> Accelerator:
    """An Accelerator whose batch size counts over all processes, so that their number does not change the training.

    Args:
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``; None: as Accelerate was told, by ``accelerate launch``, its
            config file or ACCELERATE_MIXED_PRECISION, else ``"no"``.
        compile_mode: a mode of `torch.compile`, which models are then trained with; `OFF`: none; None: as
            ``accelerate launch`` was told.
        **kwargs: further arguments of `accelerate.Accelerator`, such as ``log_with`` and ``project_dir`` of trackers.

    Raises:
        ValueError: if a launcher started several processes and they did not find each other, or asks for a precision
            that is not among these.
    """
    launched = _launched()
    if launched > 1:  # one that has done its own work waits for the others; should one die, its launcher ends all
        kwargs.setdefault("kwargs_handlers", [InitProcessGroupKwargs(timeout=timedelta(days=1))])
    # Accelerate makes a group of CPU processes only when it is told that the CPU is meant
    kwargs.setdefault("cpu", launched > 1 and not torch.accelerator.is_available())
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=True),
        **kwargs,
    )
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(
            f"the launcher asks for mixed precision {accelerator.mixed_precision!r}; allowed are {', '.join(PRECISIONS)}. "
            "Give one of them by --mixed-precision."
        )
    # losses are weighted by images here; Accelerate would divide them by the number of micro-batches once more
    accelerator.gradient_accumulation_steps = 1
    # set here: Accelerate's state, which all accelerators of a process share, would keep the plugin of the first one
    accelerator.state.dynamo_plugin = _compiler(compile_mode)
    if accelerator.num_processes < launched:
        raise ValueError(
            f"a launcher started {launched} processes, but this one sees {accelerator.num_processes}. On this kind of "
            "device start the command without a launcher."
        )
    return accelerator


@contextmanager
def alone(mixed_precision: str | None = None, compile_mode: str | None = None) -> Iterator[Accelerator]:
    """An accelerator that sees this process alone, on its own device, though a launcher has started several.

    What is trained with it meanwhile is what one process without a launcher trains, to the byte with as many threads. What
    Accelerate knows of the group stands in states that its objects share; they are put aside, and the group stays as it is.

    Args:
        mixed_precision: as of `make_accelerator`.
        compile_mode: as of `make_accelerator`.
    """
    states = (PartialState, AcceleratorState, GradientState)
    group = [state._shared_state for state in states]
    launched = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    try:
        for state in states:
            state._shared_state = {}
        yield make_accelerator(mixed_precision, compile_mode)
    finally:
        os.environ.update(launched)
        for state, shared in zip(states, group, strict=True):
            state._shared_state = shared


def _compiler(mode: str | None) -> TorchDynamoPlugin:
    if mode is None:
        return TorchDynamoPlugin()
    if mode == OFF:
        return TorchDynamoPlugin(backend="no")
    return TorchDynamoPlugin(backend="inductor", mode=mode, dynamic=False)


def asked_micro_batches() -> int:
    """Micro-batches per step that Accelerate's environment asks for; 1 where it does not.

    Raises:
        ValueError: if it is no whole number of at least 1.
    """
    text = os.environ.get(_ACCUMULATION, "1")
    if not (text.isdecimal() and int(text) >= 1):
        raise ValueError(f"{_ACCUMULATION} must be a whole number of at least 1, got {text!r}.")
    return int(text)


def warn_of_other_precision(used: str | None) -> None:
    """Say that a launcher's precision is not the one that a run was begun in, or was asked for; None: none was."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if used is not None and asked not in ("no", used):
        logger.warning("mixed precision is %r, as this run was asked for; the launcher's %r is not used", used, asked)


def describe(accelerator: Accelerator, micro_batches: int) -> str:
    """What a training computes with, in one line."""
    count = accelerator.num_processes
    parts = [
        f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type}",
        f"mixed precision {accelerator.mixed_precision}",
        f"{micro_batches} micro-batch{'es' if micro_batches > 1 else ''} a step",
        "compiled" if is_compiling(accelerator) else "not compiled",
    ]
    return ", ".join(parts)


def _launched() -> int:
    """How many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


def refuse_launcher(what: str) -> None:
    """For work that is shared by starting it several times instead of by a launcher.

    Raises:
        ValueError: if a launcher has started several processes.
    """
    if (launched := _launched()) > 1:
        raise ValueError(
            f"{what} runs in one process, and a launcher started {launched}. Start it without one; to share the work, type "
            "the same command in several terminals or on several machines, one for each GPU (CUDA_VISIBLE_DEVICES)."
        )


def is_compiling(accelerator: Accelerator) -> bool:
    """Whether models that it prepares are compiled."""
    return accelerator.state.dynamo_plugin.backend != DynamoBackend.NO


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Let the processes of a launcher end a piece of work together: where one of them fails, none waits for it for ever.

    Args:
        accelerator: whose processes all come here; each may have work of its own inside, and must not wait for another there.

    Raises:
        Exception: what was raised inside; in this process alone.
        ValueError: another process has raised; says which, and what.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said = None if failure is None else f"{type(failure).__name__}: {failure}"
    reasons = gather_object([said]) if accelerator.num_processes > 1 else [said]
    if failure is not None:
        raise failure
    for process, reason in enumerate(reasons):
        if reason is not None:
            raise ValueError(f"process {process} of {len(reasons)} has failed, and the others stop with it. {reason}")


def total(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes, the same on each of them; in float64 where there are several."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum").tolist()
