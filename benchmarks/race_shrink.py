"""How much of a trained update to keep, chosen on images that were not trained on: whether that pays.

    python benchmarks/race_shrink.py runs/seed0 runs/seed1 runs/seed2 --output shrink.jsonl

For each run of ``peft-noah run --strategy race``: the winner's fold models are scored with their updates times 0.5 to 1.2, each on
the images of its own fold; the factor with the best score is then tried on the trained winner, on the test images. ``up`` weights of
LoRA and adapters are scaled, classifiers and tokens are left alone. One JSON line a run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


@torch.no_grad()
def scale_update(model: torch.nn.Module, factor: float) -> None:
    """Multiply what LoRA and adapters add to the backbone's activations."""
    for name, weight in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("up", "up_bias") and ("noah_lora" in name or "noah_adapter" in name):
            weight.mul_(factor)


def try_factors(folder: Path) -> dict[str, object]:
    """Score of each factor out of fold, and test accuracy of each with the trained winner."""
    from peft_noah.progress import Reporter
    from peft_noah.run.context import RunContext
    from peft_noah.run.heats import HeatRunner, image_scores, weights_file
    from peft_noah.run.models import add_design
    from peft_noah.searching.race import Race
    from peft_noah.training.evaluation import compute_logits
    from peft_noah.tuner.adapter_files import load_adapter

    run, race = RunContext(folder, reporter=Reporter(enabled=False)), Race.load(folder / "race.json")
    design, runner = race.designs[race.winner], HeatRunner(run, race.settings)
    scores, right, tests = {}, {}, {}
    for factor in FACTORS:
        found, hits = [], []
        for fold, rows in enumerate(runner.folds):
            model = add_design(run.frozen_backbone(), design, run.settings.recipe)
            model.load_state_dict(load_file(weights_file(run, design, fold)), strict=False)
            scale_update(model, factor)
            held = runner.labelled.subset(rows)
            logits = compute_logits(model, held, run.normalize, run.accelerator)
            found += image_scores(logits, held.labels)
            hits += (logits.argmax(-1) == held.labels).tolist()
        scores[factor], right[factor] = found, sum(hits) / len(hits)
        model = load_adapter(run.fresh_backbone(), folder / "adapter-race")
        scale_update(model, factor)
        tests[factor] = run.accuracy(model.eval(), run.splits.test)
    mean = {factor: sum(found) / len(found) for factor, found in scores.items()}
    best = max(FACTORS, key=lambda factor: (mean[factor], -abs(factor - 1)))
    leads = torch.tensor(scores[best], dtype=torch.float64) - torch.tensor(scores[1.0], dtype=torch.float64)
    return {
        "run": folder.name,
        "design": design.name,
        "chosen": best,
        "lead": leads.mean().item(),
        "lead_error": (leads.std() / len(leads) ** 0.5).item(),
        "out_of_fold_score": mean,
        "out_of_fold_accuracy": right,
        "test": tests,
        "test_whole": tests[1.0],
        "test_chosen": tests[best],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of finished races")
    parser.add_argument("--output", type=Path, default=Path("shrink.jsonl"))
    arguments = parser.parse_args()
    from peft_noah.run.quiet import quiet

    quiet()
    for folder in arguments.runs:
        row = try_factors(folder)
        with arguments.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{folder}: keep {row['chosen']:g}; test {row['test_whole']:.4f}, then {row['test_chosen']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
