"""What people see of a race while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live

from peft_noah.progress import Reporter
from peft_noah.results.table import Number, Table
from peft_noah.searching.race import Heat, Race, Standing

if TYPE_CHECKING:
    import rich.table

_HEADER = ("design", "rung", "score", "lead", "now")


class RaceBoard:
    """Shows where the designs of a race stand, and which heat is being trained.

    Args:
        race: as it goes on.
        reporter: of the run; it is quiet on all processes but the main one.
    """

    def __init__(self, race: Race, reporter: Reporter) -> None:
        self.race, self.reporter = race, reporter
        self._now: tuple[Heat, str] | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it is open, a terminal shows the table; the last one stays there."""
        if not self.reporter.live:
            yield
            return
        with Live(get_renderable=self.table, console=self.reporter.console, refresh_per_second=4):
            yield

    @contextmanager
    def training(self, heat: Heat) -> Iterator[Callable[[int, int, str], None]]:
        """While a heat is trained; yields ``update(step, steps, note)``, as `Reporter.stage` does."""
        self._now = heat, "starts"

        def update(step: int, steps: int, note: str = "") -> None:
            self._now = heat, f"step {step:,}, {note}"

        try:
            yield update
        finally:
            self._now = heat, "is scored"

    def told(self, heat: Heat) -> None:
        """A heat's scores have come: a line, where no table shows them; and the standings, where a rung has ended."""
        self._now = None
        if self.reporter.live:
            return
        right, images = self.race.notes[heat]["accuracy"], len(self.race.told[heat])
        self.reporter.say(
            f"race, rung {heat.rung + 1}: {self.race.designs[heat.design].name}, fold {heat.fold + 1} of "
            f"{self.race.settings.folds}: {100 * right:.1f} % of {images:,} {self.race.what}s right"
        )
        if self.race.rung > heat.rung:
            self.reporter.say(describe_rung(self.race, heat.rung))

    def table(self) -> rich.table.Table:
        """One row a design, in the order of the race's file."""
        return Table("race", "", _HEADER, tuple(map(self._row, range(len(self.race.designs))))).to_rich()

    def _row(self, design: int) -> tuple:
        rungs = [rung for rung in self.race.standings if design in [standing.design for standing in rung]]
        standing = next((s for s in (rungs[-1] if rungs else []) if s.design == design), None)
        score = None if standing is None else Number(100 * standing.score)
        lead = None if standing is None else _lead(standing)
        return (
            self.race.designs[design].name,
            Number(len(rungs), decimals=0),
            score,
            lead,
            self._state(design, standing),
        )

    def _state(self, design: int, standing: Standing | None) -> str:
        if self._now is not None and self._now[0].design == design:
            heat, note = self._now
            return f"fold {heat.fold + 1} of {self.race.settings.folds}: {note}"
        if self.race.is_over and design == self.race.winner:
            return "won"
        if design in self.race.running:
            return ""
        return f"stopped: {standing.stopped}" if standing is not None else "takes no part"


def _lead(standing: Standing) -> str:
    if standing.design == 0:
        return "default"
    return str(Number(100 * standing.lead, 100 * standing.error, signed=True))


def describe_rung(race: Race, rung: int) -> str:
    """Where the designs stood when a rung ended, a line each, the best first."""
    lines = [f"race, rung {rung + 1} of {len(race.settings.rungs)}:"]
    for standing in race.standings[rung]:
        stopped = standing.stopped and f", stopped: {standing.stopped}"
        name = race.designs[standing.design].name
        lines.append(f"  {name}: {100 * standing.score:.1f} ({_lead(standing)}){stopped}")
    return "\n".join(lines)


def describe_winner(race: Race) -> str:
    """Which design has won, in one sentence."""
    name = race.designs[race.winner].name
    if race.winner == 0 or not race.standings:
        return (
            f"{name}, the default design, goes on: {'no other was ahead of it' if race.told else 'nothing was raced'}."
        )
    standing = next(each for each in race.standings[-1] if each.design == race.winner)
    return f"{name} has won, with a score {_lead(standing)} points above the default's."
