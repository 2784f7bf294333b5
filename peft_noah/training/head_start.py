"""A start of the classifier that is fitted to the frozen backbone's features before anything else is trained.

A classifier that fits its training images perfectly leaves no gradient to the modules behind it. So the fit is
regularised, and as confident as it deserves to be on images that it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.fast import fast_forward

#: ridge penalties that are tried, as shares of the largest squared singular value of the features
RIDGES = tuple(10.0 ** (power / 2) for power in range(-12, 5))
#: factors on the logits that are tried
SCALES = tuple(2.0 ** (power / 2) for power in range(-4, 17))


@dataclass(frozen=True)
class HeadFit:
    """A linear classifier in closed form.

    Attributes:
        weight: (classes, features).
        bias: (classes,).
        ridge: the penalty, as a share of the largest squared singular value of the features; no unit.
        scale: the factor on the logits; no unit.
        loss: mean cross-entropy of the images, each predicted by the fit without it.
        accuracy: share of the images that are then predicted right.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    ridge: float
    scale: float
    loss: float
    accuracy: float


def fit_head(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> HeadFit:
    """Ridge regression on one-hot labels, with the penalty and the scale of the logits chosen by leaving one out.

    With centred features X = U S Vᵀ and centred one-hot labels Y the fit is ``V S / (S² + ridge) Uᵀ Y``. Its prediction
    of image i without that image is ``y_i - (y_i - fitted_i) / (1 - h_i)``, where h_i is the image's leverage; so no fit
    is made twice. Source: Allen 1974 (PRESS); Golub, Heath and Wahba 1979.

    Args:
        features: (N, D), what the classifier reads of each image.
        labels: (N,), class indices.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: there are fewer than 2 images.
    """
    if len(features) < 2:
        raise ValueError(f"a head needs at least 2 images to be fitted to, got {len(features)}.")
    x, y = features.double(), F.one_hot(labels, num_classes).double()
    mean, base = x.mean(0), y.mean(0)
    u, s, vt = torch.linalg.svd(x - mean, full_matrices=False)
    target = u.T @ (y - base)
    best: tuple[float, float, float, float] | None = None  # loss, ridge, scale, accuracy
    for ridge in RIDGES:
        left_out = y - (y - base - u @ (_shrink(s, ridge)[:, None] * target)) / (1 - _leverage(u, s, ridge))[:, None]
        for scale in SCALES:
            loss = F.cross_entropy(scale * left_out, labels).item()
            if best is None or loss < best[0]:
                accuracy = (left_out.argmax(-1) == labels).double().mean().item()
                best = loss, ridge, scale, accuracy
    loss, ridge, scale, accuracy = best
    inverse = s / (s**2 + ridge * s[0] ** 2)
    weight = (vt.T @ (inverse[:, None] * target)).T
    bias = base - weight @ mean
    return HeadFit((scale * weight).float(), (scale * bias).float(), ridge, scale, loss, accuracy)


def _shrink(s: torch.Tensor, ridge: float) -> torch.Tensor:
    """What the penalty leaves of each singular direction, 0 to 1."""
    return s**2 / (s**2 + ridge * s[0] ** 2)


def _leverage(u: torch.Tensor, s: torch.Tensor, ridge: float) -> torch.Tensor:
    """How much each image decides its own prediction, (N,); below 1."""
    return ((u**2) @ _shrink(s, ridge) + 1 / len(u)).clamp(max=1 - 1e-6)


def start_head(
    model: nn.Module, head: nn.Linear, images: LabelledSplit, normalize: Prepare | None, accelerator: Accelerator
) -> HeadFit:
    """Fit a model's classifier to the features that it reads of the images now, and write the fit into it.

    It costs one forward pass of the images. All processes do the same work, and get the same weights.

    Args:
        model: a classifier called with what `images.inputs` gives.
        head: the Linear in it that makes the logits.
        images: a split of labelled samples, such as an `ImageSplit`.
        normalize: uint8 pixels to the backbone's input; None where samples need no such step.
        accelerator: its device and precision.

    Raises:
        ValueError: the classifier has no bias, which the fit needs.
    """
    check_head(head)
    fit = fit_head(read_features(model, head, images, normalize, accelerator), images.labels, head.out_features)
    with torch.no_grad():
        head.weight.copy_(fit.weight)
        head.bias.copy_(fit.bias)
    return fit


def check_head(head: nn.Linear) -> None:
    """Raise ValueError where a classifier cannot be fitted."""
    if head.bias is None:
        raise ValueError(
            "the classifier of this family has no bias, so it cannot be fitted first. Leave head_start out."
        )


@torch.inference_mode()
def read_features(
    model: nn.Module, head: nn.Module, images: LabelledSplit, normalize: Prepare | None, accelerator: Accelerator
) -> torch.Tensor:
    """What the classifier reads of each image, (N, D) in float32 on the CPU; the model's mode is restored."""
    found: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: found.append(args[0].float().cpu()))
    was_training, device = model.training, accelerator.device
    model.to(device).eval()
    try:
        with fast_forward(model):
            for batch in DataLoader(images, 256, collate_fn=images.collate):
                with accelerator.autocast():
                    model(**images.inputs(send_to_device(batch, device), normalize))
    finally:
        hook.remove()
        model.train(was_training)
    return torch.cat(found)
