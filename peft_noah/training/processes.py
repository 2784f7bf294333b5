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

import os

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DynamoBackend, TorchDynamoPlugin


def make_accelerator(mixed_precision: str = "no", compile_mode: str | None = None, **kwargs) -> Accelerator:
    """An Accelerator whose batch size counts over all processes, so that their number does not change the training.

    Args:
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        compile_mode: a mode of `torch.compile`, which models are then trained with; None: as ``accelerate launch`` was told.
        **kwargs: further arguments of `accelerate.Accelerator`, such as ``log_with`` and ``project_dir`` of trackers.

    Raises:
        ValueError: if a launcher started several processes and they did not find each other.
    """
    launched = _launched()
    # Accelerate makes a group of CPU processes only when it is told that the CPU is meant
    kwargs.setdefault("cpu", launched > 1 and not torch.accelerator.is_available())
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=True),
        **kwargs,
    )
    # set here: Accelerate's state, which all accelerators of a process share, would keep the plugin of the first one
    compiler = {} if compile_mode is None else {"backend": "inductor", "mode": compile_mode, "dynamic": False}
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(**compiler)
    if accelerator.num_processes < launched:
        raise ValueError(
            f"a launcher started {launched} processes, but this one sees {accelerator.num_processes}. On this kind of "
            "device start the command without a launcher."
        )
    return accelerator


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


def total(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes, the same on each of them; in float64 where there are several."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum").tolist()
