"""What a run does, method by method: the stages that a method needs, its training, its result, its adapter.

What the folder holds, and in which file, is said in :mod:`peft_noah.run.folder`. What has left its file is not done again,
so an interrupted run goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from torch import nn

from peft_noah.results.report import RunReport
from peft_noah.run.architecture_source import read_architecture
from peft_noah.run.context import RunContext
from peft_noah.run.models import classifiers, lacks_place
from peft_noah.run.names import DESIGN, SHARED
from peft_noah.run.publishing import publish
from peft_noah.run.registry import Method, Stage, find_method, method_of_entry, strategies
from peft_noah.run.reporting import report_method
from peft_noah.searching.design import Design
from peft_noah.training.head_start import start_head


def run_everything(run: RunContext) -> None:
    """The whole job: what the strategy begins with, the baselines of the settings, the strategy's methods.

    Raises:
        Busy: another job is at work on one of them.
    """
    stages, methods = planned_work(run)
    if stages:
        do_stages(run, stages[-1])
    for method in methods:
        run_method_alone(run, method)


def planned_work(run: RunContext) -> tuple[tuple[Stage, ...], list[Method]]:
    """The stages of a run's strategy, and the methods of its table: the baselines that the backbone has a place for, then the
    strategy's."""
    strategy, methods = strategies()[run.settings.strategy], []
    for method in (*map(method_of_entry, run.settings.baselines), *strategy):
        if method.name in [planned.name for planned in methods]:
            continue
        if reason := lacks_place(run.settings.backbone, [method.name]):
            run.reporter.say(f"{method.name} is left out: {reason}.")
        else:
            methods.append(method)
    return strategy[0].stages, methods


def do_stages(run: RunContext, last: Stage) -> None:
    """Do a stage and those before it, where they are not done yet.

    Raises:
        Busy: another job is at work on one of them.
    """
    check_stages(run, last)
    with run.alone(SHARED):
        for stage in last.chain:
            stage.run(run)


def check_stages(run: RunContext, last: Stage) -> None:
    """Raise ValueError where a stage, or one before it, is not done and would have nothing to do."""
    for stage in last.chain:
        if stage.check is not None and not (run.folder / stage.file).exists():
            stage.check(run)


def run_method_alone(run: RunContext, method: Method | str) -> None:
    """`run_method`, while other jobs in the folder keep off this method.

    Raises:
        Busy: another job is at work on it.
    """
    method = find_method(method) if isinstance(method, str) else method
    with run.alone(method.name):
        run_method(run, method)


def run_method(run: RunContext, method: Method | str) -> None:
    """Run a method of the table, with whatever it needs first; its result and its adapter are in the run folder then.

    Args:
        run: the run.
        method: the method, or its name.

    Raises:
        ValueError: if there is no such method, or a transfer of that name has another architecture.
        Busy: if another job is at work on what the method needs.
    """
    method = find_method(method) if isinstance(method, str) else method
    if method.needs is not None:
        check_stages(run, method.needs)
    run.prepare()
    if run.files.result(method.name) is not None:
        _check_same(run, method)
        run.reporter.say(f"{method.name}: its result is there already, and is kept")
        run.on_main(run.files.complete_table)
        _publish(run, missing_only=True)
        return
    do_method(run, method)
    # without an adapter there is nothing new to show, but what an earlier job left out
    _publish(run, missing_only=method.keeps is None)


def do_method(run: RunContext, method: Method) -> None:
    """As `run_method` for one that has no result yet, without figures and cards.

    Raises:
        Busy: if another job is at work on what the method needs.
    """
    run.prepare()
    if method.best_of:
        _report_best_of(run, method)
        return
    if method.needs is not None:
        do_stages(run, method.needs)
    _train_and_report(run, method)


def validate_from_scratch(run: RunContext, method: Method) -> float:
    """Validation accuracy of a method trained on the training images alone; nothing of it is kept."""
    model, accuracy, _ = _train_and_validate(run, method)
    run.forget(_training_name(method, "train"))
    return accuracy


def _train_and_report(run: RunContext, method: Method) -> None:
    """Validation accuracy of a model trained on train, test accuracy of one trained on train + validation.

    What is not trained has both accuracies from one model. What a stage has measured is not trained on train.
    """
    if method.validation is None:
        model, accuracy, seconds = _train_and_validate(run, method)
        validation = accuracy, len(run.splits.validation)
    else:
        validation, seconds = method.validation(run), 0.0
    again = _training_name(method, "train + validation")
    if method.training is not None:
        images = run.splits.train + run.splits.validation
        model = _start(run, method, images)
        training = run.settings.training(method.training)
        if method.epochs is not None:
            training = replace(training, epochs=method.epochs(run))
        seconds += run.train(again, model, images, training).seconds
    if method.keeps is not None:
        run.save_adapter(model, method.keeps, method.design)
    report = report_method(run, method, model.eval(), validation, seconds)
    run.on_main(run.files.add, report)
    run.forget(_training_name(method, "train"), again)


def _train_and_validate(run: RunContext, method: Method) -> tuple[nn.Module, float, float]:
    """A model trained on the training images, if it is trained, its validation accuracy, and the seconds it took."""
    started = time.perf_counter()
    model = _start(run, method, run.splits.train)
    if method.training is None:
        validation = run.accuracy(model.eval(), run.splits.validation)
        return model, validation, time.perf_counter() - started
    name = _training_name(method, "train")
    seconds = run.train(name, model, run.splits.train, run.settings.training(method.training)).seconds
    return model, run.accuracy(model.eval(), run.splits.validation), seconds


def _start(run: RunContext, method: Method, images: Any) -> nn.Module:
    """The model of a method before it is trained on some images, to which a design may have the classifier fitted first."""
    model = method.start(run)
    if method.design is not None and method.design.head_start:
        for head in classifiers(model):
            start_head(model, head, images, run.normalize, run.accelerator)
    return model


def _training_name(method: Method, images: str) -> str:
    return f"{method.name}, on {images}"


def _report_best_of(run: RunContext, method: Method) -> None:
    """The method with the best validation accuracy among some, at the cost of all."""
    for name in method.best_of:
        run_method_alone(run, name)
    reports = [RunReport.load(run.files.result_path(name)) for name in method.best_of]
    seconds = sum(report.results[0].seconds for report in reports)
    best = max(reports, key=lambda report: (report.results[0].validation, -report.results[0].parameters))
    chosen = best.results[0]
    note = f"{method.name}: {chosen.method}, chosen on the validation {run.splits.what}s."
    result = replace(chosen, method=method.name, seconds=seconds)
    run.on_main(run.files.add, replace(best, results=[result], notes=[note]))


def _check_same(run: RunContext, method: Method) -> None:
    """Refuse to take another architecture's adapter for that of a transfer, or another design's."""
    if method.design is not None and Design.load(run.folder / method.keeps / DESIGN) != method.design:
        raise ValueError(
            f"{run.folder / method.keeps} holds another design of this name already. Give this one another name."
        )
    if method.architecture is not None and read_architecture(run.folder / method.keeps) != method.architecture:
        raise ValueError(
            f"{run.folder / method.keeps} holds another architecture already. Train this one in a run folder of its own, or "
            "give its file another name."
        )


def _publish(run: RunContext, missing_only: bool = False) -> None:
    """Figures and cards, after the results that they show are stored."""

    def write() -> None:
        with run.files.lock("figures", wait=True):
            publish(run.folder, missing_only=missing_only)

    run.on_main(write)
