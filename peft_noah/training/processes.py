"""Accelerate's processes, as every stage of a run uses them.

Several GPUs or machines need no code of their own, only a launcher around the same command::

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


def make_accelerator(mixed_precision: str = "no", **kwargs) -> Accelerator:
    """An Accelerator whose batch size counts over all processes, so that their number does not change the training.

    Args:
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        **kwargs: further arguments of `accelerate.Accelerator`, such as ``log_with`` and ``project_dir`` of trackers.

    Raises:
        ValueError: if a launcher started several processes and they did not find each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # Accelerate makes a group of CPU processes only when it is told that the CPU is meant
        cpu=launched > 1 and not torch.accelerator.is_available(),
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=True),
        **kwargs,
    )
    if accelerator.num_processes < launched:
        raise ValueError(
            f"a launcher started {launched} processes, but this one sees {accelerator.num_processes}. On this kind of "
            "device start the command without a launcher."
        )
    return accelerator


def total(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes, the same on each of them; in float64 where there are several."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum").tolist()
