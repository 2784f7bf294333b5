"""The stage that trains the supernet, and the supernet it leaves."""

from __future__ import annotations

from peft import PeftModel

from peft_noah.run.context import RunContext
from peft_noah.run.names import SUPERNET
from peft_noah.training import ArchitectureSampler
from peft_noah.tuner.adapter_files import load_adapter


def train_supernet(run: RunContext) -> None:
    """Train the supernet on the training split, one random subnet a step; it is not trained again where it is there."""
    run.prepare()
    if (run.folder / SUPERNET).exists():
        return
    model = run.fresh_supernet()
    sampler = ArchitectureSampler(model.get_search_space(), run.settings.seed)
    log = run.train("supernet", model, run.splits.train, run.settings.training("supernet"), sampler)
    model.set_architecture(model.get_search_space().largest())
    run.on_main(run.files.note_stage, "supernet", log.seconds, log.peak_memory)
    run.save_adapter(model, SUPERNET)
    run.forget("supernet")


def load_supernet(run: RunContext) -> PeftModel:
    """The trained supernet, in evaluation mode on the run's device."""
    model = load_adapter(run.fresh_backbone(), run.folder / SUPERNET)
    return model.to(run.accelerator.device).eval()
