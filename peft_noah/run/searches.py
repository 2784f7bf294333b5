"""The stages that search the trained supernet: by evolution, and at random as a control."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel

from peft_noah.fast import fast_forward
from peft_noah.run.context import RunContext
from peft_noah.run.names import RANDOM_SEARCH, SEARCH
from peft_noah.run.reporting import package_versions
from peft_noah.run.supernet import load_supernet
from peft_noah.searching.bounding import search_with_bounds
from peft_noah.searching.budget import check_budget, scaled_budget
from peft_noah.searching.evolution import Evolution, RandomSearch
from peft_noah.searching.result import SearchResult
from peft_noah.searching.scoring import Scorer, map_over_processes
from peft_noah.training.interruption import Interruption
from peft_noah.training.memory import peak_memory, start_measuring
from peft_noah.tuner.backbones import find_backbone


def search(run: RunContext) -> SearchResult:
    """Find the best architecture under the budget, by accuracy on the validation split."""
    return _search(run, "search", SEARCH, Evolution, run.settings.search())


def random_search(run: RunContext) -> SearchResult:
    """The control at NOAH's cost: the best of as many random architectures, scored in the same supernet."""
    evaluations = run.settings.search().population_size * run.settings.search().generations
    return _search(run, "random search", RANDOM_SEARCH, RandomSearch, evaluations)


def check_run_budget(run: RunContext) -> None:
    """Raise BudgetError where not even the smallest architecture of the run's space fits the budget that was given."""
    if run.settings.budget is not None:
        supernet = run.fresh_supernet()
        check_budget(supernet.get_search_space(), supernet.count_parameters, run.settings.budget)


def run_budget(run: RunContext, supernet: PeftModel) -> int:
    """The budget of a run in parameters: the given one, or the paper's scaled to the backbone."""
    if run.settings.budget is not None:
        return run.settings.budget
    core = supernet.base_model.model
    return scaled_budget(find_backbone(core.config.model_type).widths(core))


def _search(run: RunContext, name: str, file: str, algorithm: type[Evolution], how: object) -> SearchResult:
    path = run.folder / file
    if path.exists():
        return SearchResult.load(path)
    model, partial = load_supernet(run), path.with_suffix(".partial.json")
    start_measuring(run.accelerator.device)
    started = time.perf_counter()
    # the weights are made ready once for all candidates, not once for each
    with (
        run.reporter.stage(name, "candidates") as update,
        Interruption() as interruption,
        fast_forward(model),
    ):
        scorer = _scorer(run, model, partial, update, interruption)

        def on_round(so_far: SearchResult) -> None:
            scorer.keep(so_far)
            run.on_main(so_far.save, partial)

        searching = algorithm(
            model.get_search_space(),
            model.count_parameters,
            run_budget(run, model),
            how,
            seed=run.settings.seed,
            provenance={"recipe": run.settings.recipe, "task": run.splits.to_dict(), "versions": package_versions()},
        )
        result = search_with_bounds(searching, functools.partial(map_over_processes, scorer), on_round)
    seconds = time.perf_counter() - started
    run.on_main(run.files.note_stage, name, seconds, peak_memory(run.accelerator.device))
    run.on_main(result.save, path)
    run.on_main(partial.unlink, missing_ok=True)
    return result


def _scorer(run: RunContext, model: PeftModel, partial: Path, update: Callable, interruption: Interruption) -> Scorer:
    search = run.settings.search()
    total = search.population_size * search.generations

    def on_scored(done: int, best: float | None) -> None:  # equally often on all processes: they may agree in it
        interruption.check("search stopped", run.accelerator)
        update(done, total, "" if best is None else f"best {100 * best:.1f} %")

    scorer = Scorer(model, run.splits.validation, run.normalize, run.accelerator, on_scored=on_scored)
    if partial.exists():
        scorer.resume(SearchResult.load(partial))
    return scorer
