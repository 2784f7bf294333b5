"""The frozen backbone spread over the processes (FSDP2), with the trainable weights whole on each of them.

For backbones whose frozen weights crowd a device: each process keeps its part, and a block's weights are gathered for
as long as it computes. What is trained is small and stays whole, so that subnets are cut, saved and checkpointed as
ever; its gradients, which FSDP does not see, are averaged in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from peft_noah.tuner.backbones import find_backbone


def shard_backbone(model: nn.Module, accelerator: Accelerator) -> None:
    """Spread the frozen weights over the processes, block by block, in place; nothing to do on one process.

    All processes must then run the same forward and backward passes in the same order, as `train` and `evaluate` do.
    Such a model cannot be copied, so neither `extract` nor `export_lora` works: save it, and load it anew for those.

    Args:
        model: a classifier with a frozen backbone, adapted or not; not wrapped yet.
        accelerator: whose processes share it.
    """
    if accelerator.num_processes == 1:
        return
    trainable = {weight for weight in model.parameters() if weight.requires_grad}
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    blocks = [base.get_submodule(name) for name in find_backbone(base.config.model_type).block_names(base)]
    for module in (*blocks, model):
        if any(not weight.requires_grad for weight in module.parameters()):
            fully_shard(module, mesh=mesh, ignored_params=trainable)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_backbone` has spread the weights of ``model``."""
    return isinstance(model, FSDPModule)


def average_gradients(weights: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
