"""The result of a method with all that made it: accuracies, parameters, times, task, backbone, settings, versions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from peft_noah.results.report import MethodResult, RunReport
from peft_noah.run.context import RunContext
from peft_noah.run.models import count_trainable
from peft_noah.run.registry import Method
from peft_noah.training.processes import is_compiling
from peft_noah.tuner.backbones import find_backbone
from peft_noah.tuner.backbones.images import needs_interpolation


def report_method(
    run: RunContext, method: Method, model: nn.Module, validation: tuple[float | None, int], seconds: float
) -> RunReport:
    """Read the test images, for the first and only time, and say how a method did.

    Args:
        run: the run.
        method: the method.
        model: as it was trained, in evaluation mode.
        validation: accuracy on images that were not trained on, a share, and their number; (None, 0): not measured.
        seconds: of what the method did itself; its stages are added.
    """
    parameters, head = count_trainable(model)
    test, others = run.splits.test, run.splits.other_tests.items()
    stages = [stage.name for stage in method.stages]
    result = MethodResult(
        method=method.name,
        seed=run.settings.seed,
        parameters=parameters,
        head_parameters=head,
        validation=validation[0],
        test=None if test is None else run.accuracy(model, test),
        n_validation=validation[1],
        n_test=0 if test is None else len(test),
        seconds=seconds + sum(run.files.seconds(stage) for stage in stages),
        tests={name: (run.accuracy(model, images), len(images)) for name, images in others},
    )
    notes = [f"{note}." for note in run.splits.notes]
    notes += [_memory_note(run, stages)] if stages else []
    notes += [method.cost(run)] if method.cost is not None else []
    architecture = None if method.is_baseline else model.get_architecture().to_dict()
    return _report(run, result, architecture, notes)


def _memory_note(run: RunContext, stages: Sequence[str]) -> str:
    taken = ", ".join(f"{stage} {run.files.peak_memory(stage) / 1e9:.1f} GB" for stage in stages)
    where = "on the GPU, by torch" if run.accelerator.device.type == "cuda" else "of the whole process"
    return f"peak memory ({where}, main process): {taken}."


def _report(
    run: RunContext, result: MethodResult, architecture: dict[str, list[int]] | None, notes: list[str]
) -> RunReport:
    settings, backbone = run.settings, run.fresh_backbone()
    config, widths = backbone.config, find_backbone(backbone.config.model_type).widths(backbone)
    name = settings.task_name or Path(settings.dataset or run.splits.source).name
    return RunReport(
        results=[result],
        task={"name": name, "group": settings.group or "", "shots": settings.shots, **run.splits.to_dict()},
        backbone={
            "model": settings.model or "bundled vit-tiny-64",
            "model_type": config.model_type,
            "blocks": len(widths),
            "width": max(widths),
            "interpolated": run.splits.what == "image" and needs_interpolation(config, run.splits.preprocessing.size),
        },
        preprocessing=run.splits.preprocessing.to_dict(),
        settings={
            **asdict(settings),
            "supernet_epochs": settings.training("supernet").epochs,
            "compile": is_compiling(run.accelerator),
        },
        versions=package_versions(),
        architecture=architecture,
        notes=notes,
    )


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "peft-noah"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
