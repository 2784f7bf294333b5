"""The whole job of a run on a cluster: the heats of a race, or supernet and search; then baselines and methods side by side."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from peft_noah.run.cluster import Cluster, Pool
from peft_noah.run.context import RunContext
from peft_noah.run.names import SHARED
from peft_noah.run.pieces import Piece, run_pieces
from peft_noah.run.publishing import publish
from peft_noah.run.registry import Method, Stage
from peft_noah.run.stages import check_stages, planned_work
from peft_noah.training.processes import refuse_launcher


def run_everything_on(cluster: Cluster, run: RunContext) -> None:
    """As `run_everything`, on a cluster; every result is the same. What has left its file is not done again.

    Raises:
        ValueError: the cluster cannot run a piece, or a launcher started several processes; nothing is written then.
        Busy: another job is at work on this run.
        Exception: what a method raised, when the others have ended.
    """
    refuse_launcher("a run on a cluster")
    planned, methods = planned_work(run)
    if planned:
        check_stages(run, planned[-1])
    with cluster.connected() as pool, ExitStack() as locks:
        for work in (SHARED, *(method.name for method in methods)):
            locks.enter_context(run.alone(work))
        for stage in planned:
            if stage.spread is not None:  # its file is there from the first heat on: it goes on by itself
                stage.spread(run, pool.map)
        stages = [stage for stage in planned if not stage.is_done(run.folder)]
        _run_pieces(run, pool, stages, methods)
    run.files.complete_table()  # of a job that was killed
    publish(run.folder)


def _run_pieces(run: RunContext, pool: Pool, stages: list[Stage], methods: list[Method]) -> None:
    errors: dict[str, Exception] = {}

    def work(one: Stage | Method, needs: tuple[str, ...]) -> Stage | Method:
        if failed := [errors[need] for need in needs if need in errors]:
            raise failed[0]
        return one

    def on_end(key: str, error: Exception | None) -> None:
        if error is not None:
            errors[key] = error
            run.reporter.say(f"{key}: failed, {type(error).__name__}: {error}")

    pieces: dict[str, Piece] = {}
    for one in (*stages, *methods):
        is_stage = isinstance(one, Stage)
        if not is_stage and run.files.result(one.name) is not None:
            run.reporter.say(f"{one.name}: its result is there already, and is kept")
            continue
        before = one.after if is_stage else one.needs
        needs = tuple(f"{stage.name} stage" for stage in stages if stage is before)
        key = f"{one.name} stage" if is_stage else one.name
        pieces[key] = Piece(run.files, run.settings, partial(work, one, needs), needs)
    run_pieces(pool, pieces, lambda key: run.reporter.say(f"{key} ..."), on_end)
    if errors:
        raise next(iter(errors.values()))
