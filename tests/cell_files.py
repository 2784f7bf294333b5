"""Suite folders as the tests write them: one report per finished cell, one search per task and seed."""

from __future__ import annotations

from pathlib import Path

from peft_noah.architecture import Architecture
from peft_noah.experiments.cells import Cell
from peft_noah.jsonfile import dump_json
from peft_noah.results.report import MethodResult, RunReport

BACKBONE = {"model": "models/vit-tiny", "model_type": "vit", "blocks": 4, "width": 24}


def make_report(
    task="pets",
    method="lora",
    seed=0,
    test=0.8,
    *,
    group="",
    shots=None,
    tests=(),
    parameters=1_000,
    n_test=2_000,
    architecture=None,
    backbone=BACKBONE,
) -> RunReport:
    """The report of one cell."""
    result = MethodResult(method, seed, parameters, 50, 0.75, test, 200, n_test, 12.5, dict(tests))
    return RunReport(
        results=[result],
        task={"name": task, "group": group, "shots": shots, "source": "made up"},
        backbone=dict(backbone),
        settings={"epochs": 10, "lr": 0.001 if method == "lora" else 0.005},
        architecture=architecture and Architecture(architecture).to_dict(),
    )


def make_cell(*args, **kwargs) -> Cell:
    """The same as a cell."""
    return Cell.from_report(make_report(*args, **kwargs))


def write_cell(suite: Path, *args, slug=None, **kwargs) -> Path:
    """The same as a file of a suite."""
    report = make_report(*args, **kwargs)
    result, task = report.results[0], report.task
    shots = "" if task["shots"] is None else f"-{task['shots']}shot"
    folder = suite / f"{task['name']}{shots}" / f"seed{result.seed}" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug or result.method.replace(' ', '_').replace('/', '_')}.json"
    path.write_text(dump_json(report.to_dict()), encoding="utf-8")
    return path
