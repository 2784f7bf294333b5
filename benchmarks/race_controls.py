"""What a race must be compared with: fixed designs, trained as long as the race costs, on the same images.

    python benchmarks/race_controls.py --epochs 20 --seeds 0,1,2 --output controls.jsonl
    python benchmarks/race_controls.py --output controls.jsonl --report

Each design is trained on train + validation images of the bundled task, or of ``--dataset``, with the recipe of the race's winner
and no race, and the test images are read once. A race of ``peft-noah run --strategy race --epochs 10`` costs about as much as
19 epochs. One JSON line a training is appended; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

DESIGNS = (
    "query and key",
    "all sites, scale 1",
    "all sites, scale 4",
    "all sites, scale 12",
    "all sites, scale 16",
    "all sites, scale 4, head first",
)


def train_design(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Train a design from its start, and measure it."""
    from peft_noah.data import Normalizer, Preprocessing, bundled_backbone, bundled_task, load_splits
    from peft_noah.run.heats import classifiers
    from peft_noah.run.models import add_design, count_trainable, load_backbone
    from peft_noah.searching.design import Design
    from peft_noah.training import TrainingSettings, evaluate, make_accelerator, train
    from peft_noah.training.head_start import start_head

    plain = name.removesuffix(", head first")
    if plain == "query and key":
        design = Design(name, {"lora": 8})
    else:
        options = {"target_modules": "all-linear", "lora_scale": float(plain.split()[-1])}
        design = Design(name, {"lora": 2}, options, head_start=plain != name)
    model_folder = arguments.model or str(bundled_backbone())
    splits = load_splits(arguments.dataset or bundled_task(), Preprocessing.from_backbone(model_folder))
    images, normalize = splits.train + splits.validation, Normalizer(splits.preprocessing)
    accelerator, started = make_accelerator(), time.perf_counter()
    model = add_design(load_backbone(model_folder, splits, seed), design, "paper")
    if design.head_start:
        for head in classifiers(model):
            start_head(model, head, images, normalize, accelerator)
    settings = TrainingSettings.named("paper", "subnet", epochs=arguments.epochs, seed=seed)
    log = train(model, images, normalize, settings, accelerator)
    return {
        "design": name,
        "seed": seed,
        "epochs": arguments.epochs,
        "parameters": count_trainable(model)[0],
        "training_loss": round(log.losses[-1], 5),
        "test": evaluate(model.eval(), splits.test, normalize, accelerator),
        "n_test": len(splits.test),
        "seconds": round(time.perf_counter() - started, 1),
    }


def report(rows: list[dict]) -> str:
    """Mean and standard error over seeds of each design, as a Markdown table."""
    from peft_noah.formatting import percent, table
    from peft_noah.results.statistics import mean_and_standard_error

    lines = []
    for name, epochs in dict.fromkeys((row["design"], row["epochs"]) for row in rows):
        mine = [row for row in rows if (row["design"], row["epochs"]) == (name, epochs)]
        test, loss = mean_and_standard_error([row["test"] for row in mine]), [row["training_loss"] for row in mine]
        seconds = [row["seconds"] for row in mine]
        lines.append(
            [
                name,
                str(epochs),
                f"{mine[0]['parameters']:,}",
                f"{sum(loss) / len(loss):.2f}",
                percent(*test),
                str(len(mine)),
                f"{sum(seconds) / len(seconds):.0f}",
            ]
        )
    header = ["design", "epochs", "prompt parameters", "training loss", "test accuracy (%)", "seeds", "seconds"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder of a backbone; default: the bundled one")
    parser.add_argument("--dataset", help="folder of a task; default: the bundled one")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=Path("controls.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the table of what is there, and train nothing")
    arguments = parser.parse_args()
    from peft_noah.run.quiet import quiet

    quiet()
    known = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    if arguments.report:
        print(report(known))
        return
    done = {(row["design"], row["seed"], row["epochs"]) for row in known}
    for seed in map(int, arguments.seeds.split(",")):
        for name in DESIGNS:
            if (name, seed, arguments.epochs) not in done:
                row = train_design(name, seed, arguments)
                with arguments.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name}, seed {seed}: {100 * row['test']:.1f} % in {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
