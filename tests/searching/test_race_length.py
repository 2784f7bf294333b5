"""How long rungs and winner are, for what a race may cost."""

import pytest

from peft_noah.searching.race import RaceSettings, Rung
from peft_noah.searching.race_length import FEWEST_STEPS, heats_cost, rungs_within, winner_epochs, winner_share


@pytest.mark.parametrize("images", [100, 1000, 20_000])
@pytest.mark.parametrize("epochs", [1, 5, 10, 20, 100])
@pytest.mark.parametrize("effort", [1, 1.2, 1.5, 2, 4, 10])
@pytest.mark.parametrize("folds", [2, 4])
def test_a_race_of_any_length_costs_its_effort_and_no_more(effort, epochs, images, folds):
    rungs = rungs_within(effort, epochs, 5, images=images, folds=folds)
    RaceSettings(rungs=rungs, folds=folds)
    spent = heats_cost(rungs, epochs, folds)
    whole = spent + winner_epochs(effort, spent, epochs) / epochs
    assert effort - 1 / epochs < whole <= effort + 1e-9
    assert winner_epochs(effort, spent, epochs) >= int(winner_share(effort) * epochs + 1e-6)


@pytest.mark.parametrize(
    ("images", "folds", "steps"), [(1000, 2, 8), (200, 2, 2), (1000, 4, 12), (129, 2, 1), (171, 4, 2), (1025, 2, 8)]
)
def test_the_first_rung_has_steps_enough_to_tell(images, folds, steps):
    """A model is trained on all folds but one, ``steps`` an epoch in batches of 64; where folds differ, on the fewest images."""
    for epochs in (10, 20, 50, 100, 400):
        rungs = rungs_within(2, epochs, 5, images=images, folds=folds)
        assert rungs[0].designs == 1 or rungs[0].share * epochs * steps >= FEWEST_STEPS - 1e-6


def test_the_shorter_a_full_training_the_fewer_designs_race():
    shapes = [[rung.designs for rung in rungs_within(2, epochs, 5)] for epochs in (100, 20, 10, 5)]
    assert shapes == [[5, 3, 2], [4, 2], [2], [1]]
    assert [rung.designs for rung in rungs_within(2, 100, 5, images=200)] == [4, 2]


def test_more_effort_makes_rungs_longer_and_less_leaves_designs_out():
    assert rungs_within(4, 100, 5)[0].share == pytest.approx(2 * rungs_within(2, 100, 5)[0].share)
    shapes = [[rung.designs for rung in rungs_within(effort, 100, 5)] for effort in (2, 1.6, 1.3, 1.0)]
    assert shapes == [[5, 3, 2], [4, 2], [2], [1]]
    assert rungs_within(1.0, 100, 5) == (Rung(1, 1.0),) and heats_cost(rungs_within(1.0, 100, 5), 100) == 0


def test_a_race_of_few_designs_leaves_the_winner_what_it_saves():
    few, many = (heats_cost(rungs_within(2, 100, designs), 100) for designs in (3, 5))
    assert few < many and winner_epochs(2, few, 100) > winner_epochs(2, many, 100)
    assert rungs_within(2, 100, 1) == rungs_within(2, 100, 4, images=1) == (Rung(1, 1.0),)
