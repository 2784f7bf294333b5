"""How long rungs and winner are, for what a race may cost."""

import pytest

from peft_noah.searching.race import RaceSettings, Rung
from peft_noah.searching.race_length import heats_cost, rungs_within, winner_epochs, winner_share


@pytest.mark.parametrize("epochs", [1, 5, 10, 20, 100])
@pytest.mark.parametrize("effort", [1, 1.2, 1.5, 2, 4, 10])
def test_a_race_of_any_length_costs_its_effort_and_no_more(effort, epochs):
    rungs = rungs_within(effort, epochs, 5)
    RaceSettings(rungs=rungs)
    spent = heats_cost(rungs, epochs)
    whole = spent + winner_epochs(effort, spent, epochs) / epochs
    assert effort - 1 / epochs < whole <= effort + 1e-9
    if len(rungs) > 1:
        assert winner_epochs(effort, spent, epochs) == int(winner_share(effort) * epochs + 1e-6)


def test_more_effort_makes_rungs_longer_and_less_leaves_designs_out():
    assert [rung.designs for rung in rungs_within(2, 100, 5)] == [5, 3, 2]
    assert rungs_within(4, 100, 5)[0].share > 2 * rungs_within(2, 100, 5)[0].share
    shorter = rungs_within(1.6, 100, 5)
    assert [rung.designs for rung in shorter] == [5, 3, 2] and shorter[0].share < 0.06
    assert [rung.designs for rung in rungs_within(1.3, 100, 5)] == [3, 2]
    assert [rung.designs for rung in rungs_within(1.2, 100, 5)] == [2]
    assert rungs_within(1.0, 100, 5) == (Rung(1, 1.0),) and heats_cost(rungs_within(1.0, 100, 5), 100) == 0


def test_scores_count_so_short_trainings_race_fewer_designs():
    """Scoring all images costs half an epoch."""
    assert [rung.designs for rung in rungs_within(2, 10, 5)] == [5, 3, 2]
    assert [rung.designs for rung in rungs_within(2, 5, 5)] == [3, 2]
    assert [rung.designs for rung in rungs_within(2, 1, 5)] == [1]


def test_a_race_of_few_designs_spends_what_it_saves_on_longer_rungs():
    few, many = rungs_within(2, 100, 3), rungs_within(2, 100, 5)
    assert [rung.designs for rung in few] == [3, 3, 2] and few[0].share > many[0].share
    assert rungs_within(2, 100, 1) == (Rung(1, 1.0),)
