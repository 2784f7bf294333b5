"""The methods of this package, in the order of tables, and the stages that they build on.

What makes a model imports what it needs when it is called: the command line's help reads these entries without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_noah.run.names import RACE as RACE_FILE
from peft_noah.run.names import RACE_WEIGHTS
from peft_noah.run.names import RANDOM_SEARCH as RANDOM_SEARCH_FILE
from peft_noah.run.names import SEARCH as SEARCH_FILE
from peft_noah.run.names import SUPERNET as SUPERNET_FOLDER
from peft_noah.run.registry import BackboneSource, Method, Stage, register_method
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.race_length import heats_cost

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

# ---------------------------------------------------------------------- stages


def _train_supernet(run: Any) -> None:
    from peft_noah.run.supernet import train_supernet

    train_supernet(run)


def _search(run: Any) -> Any:
    from peft_noah.run.searches import search

    return search(run)


def _random_search(run: Any) -> Any:
    from peft_noah.run.searches import random_search

    return random_search(run)


def _check_space(run: Any) -> None:
    from peft_noah.run.searches import check_run_budget

    check_run_budget(run)


def _check_designs(run: Any) -> None:
    from peft_noah.run.race import within_budget

    within_budget(run, run.settings.raced, say=False)  # the race does


def _race(run: Any) -> Any:
    from peft_noah.run.race import run_race

    return run_race(run)


def _spread_race(run: Any, map: Callable) -> Any:
    from peft_noah.run.race import run_race

    return run_race(run, map=map)


def _search_facts(path: Path, settings: Mapping[str, Any]) -> dict[str, object]:
    from peft_noah.searching.result import SearchResult

    found = SearchResult.load(path)
    return {"budget": found.budget, "candidates scored": len(found.candidates), "variant": settings["variant"]}


def _race_facts(path: Path, settings: Mapping[str, Any]) -> dict[str, object]:
    from peft_noah.searching.race import Race

    race = Race.load(path)
    raced = len({heat.design for heat in race.told})
    return {"designs raced": raced or "none", "winner": race.designs[race.winner].name}


def _race_is_over(path: Path) -> bool:
    from peft_noah.searching.race import Race

    try:
        return Race.load(path).is_over
    except ValueError:  # whoever goes on with it says what is wrong
        return False


def _supernet_passes(settings: Any, sizes: Mapping[str, int]) -> float:
    return 2 * settings.training("supernet").epochs * sizes["train"]


def _search_passes(settings: Any, sizes: Mapping[str, int]) -> float:
    search = settings.search()
    return search.population_size * search.generations * sizes["validation"]


def _race_passes(settings: Any, sizes: Mapping[str, int]) -> float:
    labelled = sizes["train"] + sizes["validation"]
    return 2 * settings.epochs * labelled * heats_cost(settings.race().rungs, settings.epochs)


SUPERNET = Stage("supernet", SUPERNET_FOLDER, _train_supernet, _supernet_passes, check=_check_space)
SEARCH = Stage("search", SEARCH_FILE, _search, _search_passes, after=SUPERNET, facts=_search_facts)
RANDOM_SEARCH = Stage(
    "random search", RANDOM_SEARCH_FILE, _random_search, _search_passes, after=SUPERNET, facts=_search_facts
)

RACE = Stage(
    "race",
    RACE_FILE,
    _race,
    _race_passes,
    facts=_race_facts,
    check=_check_designs,
    more=(RACE_WEIGHTS,),
    spread=_spread_race,
    is_over=_race_is_over,
)

# ---------------------------------------------------------------------- models


def _train_all_weights(run: BackboneSource) -> nn.Module:
    from peft_noah.run.models import train_all_weights

    return train_all_weights(run.fresh_backbone())


def _train_classifier(run: BackboneSource) -> nn.Module:
    from peft_noah.run.models import train_classifier

    return train_classifier(run.fresh_backbone())


def _add_one_module(module: str, run: BackboneSource) -> PeftModel:
    from peft_noah.run.models import add_one_module

    return add_one_module(run.fresh_backbone(), module, run.settings.recipe)


def _add_default_design(run: BackboneSource) -> PeftModel:
    from peft_noah.run.models import add_design

    return add_design(run.fresh_backbone(), PORTFOLIO[0], run.settings.recipe)


def _add_found(stage: Stage, run: Any) -> PeftModel:
    from peft_noah.run.models import add_modules

    return add_modules(run.fresh_backbone(), stage.run(run).best.architecture, run.settings.recipe)


def _cut_out(run: Any) -> PeftModel:
    from peft_noah.run.supernet import load_supernet

    return load_supernet(run).extract(SEARCH.run(run).best.architecture)


def _start_winner(run: Any) -> PeftModel:
    from peft_noah.run.race import start_winner

    return start_winner(run)


def _winner_epochs(run: Any) -> int:
    from peft_noah.run.race import epochs_left

    return epochs_left(run, RACE.run(run))


def _race_cost(run: Any) -> str:
    from peft_noah.run.race import describe_cost

    return describe_cost(run, RACE.run(run))


def _out_of_fold(run: Any) -> tuple[float | None, int]:
    from peft_noah.run.race import out_of_fold_accuracy

    return out_of_fold_accuracy(RACE.run(run))


def single_module(module: str, help: str) -> Method:
    """The method that gives every block one prompt module, with the dim that it has alone."""
    return Method(module, help, partial(_add_one_module, module), keeps=f"adapter-{module}")


# ---------------------------------------------------------------------- the table

FULL = register_method(
    Method("full", "all weights of the backbone train", _train_all_weights, training="full", passes=3)
)
LINEAR = register_method(Method("linear", "only the classifier trains", _train_classifier, passes=1))
VPT = register_method(single_module("vpt", "prompt tokens in every block"))
ADAPTER = register_method(single_module("adapter", "an Adapter in every block"))
LORA = register_method(single_module("lora", "LoRA in every block"))
LORA_ALL = register_method(
    Method(
        "lora all",
        "the default design: LoRA of rank 2 and strength 1 on every Linear of every block",
        _add_default_design,
        training="design",
        keeps="adapter-lora-all",
        strategy="fixed",
    )
)
BEST_SINGLE = register_method(
    Method(
        "best single",
        "of lora, adapter and vpt, the one with the best validation accuracy, at the cost of all",
        best_of=(LORA.name, ADAPTER.name, VPT.name),
    )
)
RANDOM = register_method(
    Method(
        "random search",
        "the best of as many random architectures as the search scores, trained from scratch",
        partial(_add_found, RANDOM_SEARCH),
        needs=RANDOM_SEARCH,
        keeps="adapter-random-search",
        weights="retrained from scratch",
    )
)
INHERITED = register_method(
    Method(
        "noah inherited",
        "the architecture found, cut out of the supernet",
        _cut_out,
        needs=SEARCH,
        training=None,
        keeps="adapter-inherited",
        strategy="noah",
        weights="inherited from the supernet",
    )
)
RETRAINED = register_method(
    Method(
        "noah retrained",
        "the architecture found, trained from scratch, as in the paper",
        partial(_add_found, SEARCH),
        needs=SEARCH,
        keeps="adapter",
        strategy="noah",
        weights="retrained from scratch",
    )
)
CONTINUED = register_method(
    Method(
        "noah continued",
        "the architecture found, cut out of the supernet and trained on",
        _cut_out,
        needs=SEARCH,
        keeps="adapter-continued",
        strategy="noah",
        weights="inherited from the supernet and trained on",
    )
)

RACED = register_method(
    Method(
        "race",
        "designs raced on all labelled images, the winner trained on",
        _start_winner,
        needs=RACE,
        training="winner",
        keeps="adapter-race",
        strategy="race",
        validation=_out_of_fold,
        epochs=_winner_epochs,
        cost=_race_cost,
        weights="the mean of the winner's folds, trained on",
    )
)

#: names of the methods that use the architecture which the search finds
NOAH = (INHERITED.name, RETRAINED.name, CONTINUED.name)
