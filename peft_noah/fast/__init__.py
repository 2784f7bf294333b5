"""The same logits and gradients in less time: what nobody reads is not computed."""

from __future__ import annotations

from peft_noah.fast.backbone_check import BackboneReport, check_backbone
from peft_noah.fast.block import FastOptions
from peft_noah.fast.forward import FastForward, fast_forward

__all__ = ["BackboneReport", "FastForward", "FastOptions", "check_backbone", "fast_forward"]
