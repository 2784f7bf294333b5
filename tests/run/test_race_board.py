"""What is shown of a race: a live table on a terminal, plain lines elsewhere."""

import io

from rich.console import Console

from peft_noah.progress import Reporter
from peft_noah.run.race_board import RaceBoard
from peft_noah.searching.design import Design
from peft_noah.searching.race import Race, RaceSettings, Rung

DESIGNS = [Design(name, {"lora": 2}) for name in ("plain", "strong", "weak", "late")]
RIGHT = (0.5, 0.75, 0.25)


def run_and_show(terminal):
    """What a race of two rungs shows, whole, and its table in the middle of the second."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, color_system=None)
    race = Race(DESIGNS, RaceSettings(rungs=(Rung(3, 0.1), Rung(2, 0.1)), surely=0.1))
    board, middle = RaceBoard(race, Reporter(console)), ""
    with board.shown():
        while heats := race.ask():
            heat = heats[0]
            with board.training(heat) as update:
                update(7, 9, "loss 0.250")
                if heat.rung == 1 and heat.design == 1:
                    with console.capture() as taken:
                        console.print(board.table())
                    middle = taken.get()
            right = RIGHT[heat.design]
            race.tell(heat, [float(image < 20 * right) for image in range(20)], accuracy=right)
            board.told(heat)
    return written.getvalue(), middle


def test_a_terminal_shows_each_design_its_lead_why_it_stopped_and_what_is_trained():
    shown, middle = run_and_show(terminal=True)
    row = {
        name: next(line for line in middle.splitlines() if f" {name} " in line) for name in ("plain", "strong", "weak")
    }
    assert "default" in row["plain"] and "50.0" in row["plain"]
    assert "75.0" in row["strong"] and "fold 2 of 2: step 7, loss 0.250" in row["strong"]
    assert "stopped: surely behind strong" in row["weak"] and "25.0" in row["weak"]
    assert "takes no part" in middle and "won" in shown


def test_without_a_terminal_each_heat_and_each_rung_has_its_plain_lines():
    shown, _ = run_and_show(terminal=False)
    lines = shown.splitlines()
    assert lines[0] == "race, rung 1: plain, fold 1 of 2: 50.0 % of 20 images right"
    assert "race, rung 2 of 2:" in lines and "  plain: 50.0 (default), stopped: surely behind strong" in lines
    assert any(line.startswith("  weak: 25.0 (−") and line.endswith("stopped: surely behind strong") for line in lines)
    assert len(lines) == 6 + 4 + 4 + 3
