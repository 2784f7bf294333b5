"""What less effort costs in accuracy: the same tasks and seeds at several values of --effort, beside LoRA.

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
from peft_noah.method_names import INHERITED, RETRAINED
from peft_noah.statistics import Estimate

LORA = "lora"
TRAINED = "{}-on-train-validation.jsonl"


def estimates(folder, method):
    """Test accuracy by task, and the mean over tasks."""
    by_task = {}
    for cell in load_cells(folder):
        if cell.method == method:
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
    return [*found, min(training_seconds(run, RETRAINED) for run in runs)]


def report(folder, efforts, epochs):
    """The table as Markdown."""
    first = folder / efforts[0]
    runs = sorted(path.parent.relative_to(first) for path in first.glob("*/seed*/stages.json"))
    unit = min(training_seconds(first / run, LORA) for run in runs)
    found = estimates(first, LORA)
    rows = [[LORA, "1", "1.0", *(percent(e.mean, e.error) for e in found.values())]]
    costs = {}
    for effort in efforts:
        costs[effort] = [seconds / unit for seconds in least_seconds([folder / effort / run for run in runs])]
        for method in (INHERITED, RETRAINED):
            measured = sum(costs[effort][:2] if method == INHERITED else costs[effort])
            accuracies = [percent(e.mean, e.error) for e in estimates(folder / effort, method).values()]
            rows.append([method, effort, f"{measured:.1f}", *accuracies])
    header = ["method", "--effort", "measured cost", *found]
    supernet, search, again = costs[efforts[0]]
    return (
        f"{table(header, rows)}\n\nTest accuracy (%), mean over {len({run.name for run in runs})} seeds ± standard error. The "
        f"unit of cost is a LoRA fine-tuning of {epochs} epochs, as long as the retraining. At --effort {efforts[0]} the supernet "
        f"took {supernet:.2f}, the search {search:.2f} and the retraining {again:.2f} of them. Supernet and retraining grow with "
        f"the epochs, the search does not: with 100 epochs it would be {supernet:.2f} + {search * epochs / 100:.2f} + "
        f"{again:.2f} = {supernet + search * epochs / 100 + again:.1f}.\n"
    )


def main():
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", help="folder of tasks, as for `peft-noah suite`")
    parser.add_argument("--efforts", default="5.6,3,2", help="the first also runs LoRA")
    parser.add_argument("--epochs", type=int, default=10, help="of a fine-tuning")
    parser.add_argument("--output", type=Path, default=Path("effort"), help="folder for the suites and the table")
    arguments, others = parser.parse_known_args()  # others are those of `peft-noah suite`
    efforts = arguments.efforts.split(",")
    for effort in efforts:
        methods = ["lora"] * (effort == efforts[0]) + ["noah-inherited", "noah-retrained"]
        command = [sys.executable, "-m", "peft_noah", "suite", arguments.root, *others]
        command += ["--epochs", str(arguments.epochs), "--effort", effort, "--methods", ",".join(methods)]
        subprocess.run([*command, "--output", str(arguments.output / effort)], check=True)
    text = report(arguments.output, efforts, arguments.epochs)
    (arguments.output / "effort.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
