"""What less effort costs in accuracy: the same tasks and seeds at several values of --effort, beside LoRA, also LoRA that is
trained as long as NOAH costs.

    python examples/effort.py tasks --tasks a,b,c --model my-vit --epochs 10 --output effort

Each effort is a suite of its own in a folder below ``--output``, so that the command can be interrupted, typed again and
shared by processes; then it writes ``effort.md`` from them. The cost of a run is measured in fine-tunings: seconds of
supernet, search and one retraining, divided by those of one LoRA fine-tuning of as many epochs on the same images, each the
least over all runs, since other work on a machine only adds to it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from peft_noah.experiments.cells import load_cells
from peft_noah.formatting import percent, table
from peft_noah.results.statistics import Estimate
from peft_noah.run.methods import INHERITED, LORA, NOAH, RETRAINED

TRAINED = "{}-on-train-validation.jsonl"


def estimates(folder, method):
    """Test accuracy by task, and the mean over tasks."""
    by_task = {}
    for cell in load_cells(folder):
        if cell.method == method and cell.result.test is not None:
            by_task.setdefault(cell.task, {})[cell.seed] = (cell.result.test, cell.result.n_test)
    parts = {task: Estimate.over_seeds(by_task[task]) for task in sorted(by_task)}
    return {**parts, "mean": Estimate.combine(list(parts.values()))}


def training_seconds(run, method):
    """Of the training on train + validation alone, from the last line of its log."""
    lines = (run / "logs" / TRAINED.format(method.replace(" ", "-"))).read_text().splitlines()
    return json.loads(lines[-1])["seconds"]


def least_seconds(runs):
    """Of supernet, search and retraining on train + validation, each the least over the runs."""
    stages = [json.loads((run / "stages.json").read_text()) for run in runs]
    found = [min(stage[name]["seconds"] for stage in stages) for name in ("supernet", "search")]
    return [*found, min(training_seconds(run, RETRAINED.name) for run in runs)]


def line(folder, method, effort, cost):
    """A row of the table."""
    return [method, effort, f"{cost:.1f}", *(percent(e.mean, e.error) for e in estimates(folder, method).values())]


def report(folder, efforts, lora_efforts, epochs):
    """The table as Markdown."""
    first = folder / efforts[0]
    runs = sorted(path.parent.relative_to(first) for path in first.glob("*/seed*/stages.json"))
    seconds = {
        effort: min(training_seconds(folder / LORA.name / effort / run, LORA.name) for run in runs)
        for effort in lora_efforts
    }
    unit = seconds["1"]
    rows = [line(folder / LORA.name / effort, LORA.name, effort, seconds[effort] / unit) for effort in lora_efforts]
    costs = {}
    for effort in efforts:
        costs[effort] = [part / unit for part in least_seconds([folder / effort / run for run in runs])]
        for method in NOAH:
            measured = sum(costs[effort][:2] if method == INHERITED.name else costs[effort])
            rows.append(line(folder / effort, method, effort, measured))
    header = ["method", "--effort", "measured cost", *estimates(first, INHERITED.name)]
    supernet, search, again = costs[efforts[0]]
    return (
        f"{table(header, rows)}\n\nTest accuracy (%), mean over {len({run.name for run in runs})} seeds ± standard error. The "
        f"unit of cost is a LoRA fine-tuning of {epochs} epochs, as long as the retraining; LoRA at a higher effort is trained "
        f"for as many times the epochs. At --effort {efforts[0]} the supernet "
        f"took {supernet:.2f}, the search {search:.2f} and the retraining {again:.2f} of them. Supernet and retraining grow with "
        f"the epochs, the search does not: with 100 epochs it would be {supernet:.2f} + {search * epochs / 100:.2f} + "
        f"{again:.2f} = {supernet + search * epochs / 100 + again:.1f}.\n"
    )


def main():
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", help="folder of tasks, as for `peft-noah suite`")
    parser.add_argument("--efforts", default="5.6,3,2", help="of NOAH")
    parser.add_argument(
        "--lora-efforts", default="1,5.6", help="of LoRA: 1, and how many times longer it is trained too"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of a fine-tuning")
    parser.add_argument("--population-size", type=int, help="candidates of a generation of NOAH's search")
    parser.add_argument("--output", type=Path, default=Path("effort"), help="folder for the suites and the table")
    arguments, others = parser.parse_known_args()  # others are those of `peft-noah suite`
    efforts, lora_efforts = arguments.efforts.split(","), arguments.lora_efforts.split(",")
    if "1" not in lora_efforts:
        parser.error("--lora-efforts needs a 1, the unit of all costs")
    suites = {f"{LORA.name}/{effort}": ([LORA.name], arguments.epochs * float(effort), []) for effort in lora_efforts}
    size = [] if arguments.population_size is None else ["--population-size", str(arguments.population_size)]
    suites |= {effort: (NOAH, arguments.epochs, ["--effort", effort, *size]) for effort in efforts}
    for folder, (methods, epochs, options) in suites.items():
        command = [sys.executable, "-m", "peft_noah", "suite", arguments.root, *others, *options]
        command += ["--epochs", str(round(epochs)), "--methods", ",".join(name.replace(" ", "-") for name in methods)]
        subprocess.run([*command, "--output", str(arguments.output / folder)], check=True)
    text = report(arguments.output, efforts, lora_efforts, arguments.epochs)
    (arguments.output / "effort.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
