"""Interrupts `peft-noah run` in every way at random moments, types the command again, and compares the final bytes.

    python examples/fault_drill.py --output drill          # 30 kills and 21 other faults: 5 minutes on a free core

The job is a tiny ViT and task that this script writes itself, with a checkpoint every 0.05 seconds. Faults:

    kill -9            at a random moment of supernet training, search, retraining and continuing
    SIGTERM, SIGINT    saves, exits with 143 or 130, and says how to go on
    truncated          kill -9, then the newest checkpoint is cut short by a random number of bytes
    full disk          no file may grow beyond 50 kB, so that checkpoints fail: a clear error, exit code 2

A run is identical if supernet, search history and all adapters have the bytes of the uninterrupted run, and the log of
every step is the same but for its time.
Processes are forked from one that has imported torch already (needs Linux or macOS); what they run is the command line.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

STAGES = ("supernet training", "search", "retraining", "continuing")
ORDER = ("start", "supernet training", "search", "inheriting", "retraining", "continuing", "report")
COMPARED = (
    "supernet/adapter_model.safetensors",
    "search.json",
    "adapter-inherited/adapter_model.safetensors",
    "adapter/adapter_model.safetensors",
    "adapter-continued/adapter_model.safetensors",
)
#: one run's faults other than kills; checkpoints, which two of them damage, are written while a model is trained
OTHERS = (
    ("SIGTERM", STAGES[0]),
    ("truncated", STAGES[0]),
    ("full disk", STAGES[0]),
    ("SIGTERM", STAGES[1]),
    ("SIGINT", STAGES[1]),
    ("truncated", STAGES[2]),
    ("SIGINT", STAGES[2]),
)


def write_job(folder: Path) -> list[str]:
    """A tiny ViT and task; returns the command that works on them."""
    import numpy as np
    import torch
    from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
    from transformers import ViTConfig, ViTForImageClassification, logging

    disable_progress_bars()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder / "vit")
    rng, features = np.random.default_rng(0), Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    (folder / "task").mkdir()
    for name, number in (("train", 20), ("validation", 12), ("test", 9)):
        labels = [index % 3 for index in range(number)]
        images = [(rng.integers(0, 60, (16, 16, 3)) + 80 * label).astype(np.uint8) for label in labels]
        Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(folder / "task" / f"{name}.parquet")
    options = {"model": folder / "vit", "dataset": folder / "task", "strategy": "noah", "recipe": "released"}
    options["baselines"] = "none"
    size = {"epochs": 20, "supernet-epochs": 40, "population-size": 20, "generations": 3, "checkpoint-seconds": 0.05}
    return ["run", *(text for key, value in {**options, **size}.items() for text in (f"--{key}", str(value)))]


def command_line(arguments: list[str], log: Path, file_limit: int | None) -> None:
    """The `peft-noah` command in a process of its own; its output goes to ``log``."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from peft_noah.cli import main

    sys.argv = ["peft-noah", *arguments]
    main()


def stage_of(folder: Path) -> str:
    """What a run is at, by the files that it has left."""
    if not (folder / "supernet").exists():
        return "supernet training" if (folder / "logs").exists() else "start"
    if not (folder / "search.json").exists():
        return "search"
    if not (folder / "adapter").exists():
        return "retraining" if (folder / "adapter-inherited").exists() else "inheriting"
    return "report" if (folder / "adapter-continued").exists() else "continuing"


def same_bytes(path: Path, other: Path) -> bool:
    return path.exists() and path.read_bytes() == other.read_bytes()


def steps(log: Path) -> list[dict]:
    """The lines of a log without their times."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class Drill:
    """Starts runs, injects faults into them, and counts."""

    def __init__(self, work: Path, command: list[str], seed: int) -> None:
        self.work, self.command, self.rng = work, command, random.Random(seed)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["peft_noah.run.stages", "peft_noah.cli", "transformers.models.vit.modeling_vit"]
        )
        self.injected: Counter = Counter()
        self.runs = self.identical = 0
        self.problems: list[str] = []

    def start(self, folder: Path, file_limit: int | None = None):
        """The command on a run folder; it goes on where the folder is."""
        arguments = [*self.command, "--output", str(folder)]
        process = self.context.Process(target=command_line, args=(arguments, folder.with_suffix(".log"), file_limit))
        process.start()
        return process

    def reference(self) -> None:
        """The uninterrupted run, and how long its stages take."""
        self.whole, seconds = self.work / "whole", Counter()
        process = self.start(self.whole)
        last = time.perf_counter()
        while process.is_alive():
            time.sleep(0.005)
            now = time.perf_counter()
            seconds[stage_of(self.whole)] += now - last
            last = now
        if process.exitcode != 0:
            raise SystemExit(f"the uninterrupted run failed:\n{self.whole.with_suffix('.log').read_text()}")
        self.seconds = seconds

    def at_a_random_moment(self, folder: Path, stage: str, file_limit: int | None = None):
        """A process of the command, and the stage that it is at: ``stage``, unless that was over sooner."""
        process, order = self.start(folder, file_limit), ORDER.index(stage)
        while process.is_alive() and ORDER.index(stage_of(folder)) < order:
            time.sleep(0.002)
        process.join(self.rng.uniform(0, 0.6) * self.seconds[stage])
        return process, stage_of(folder)

    def inject(self, folder: Path, kind: str, stage: str) -> bool:
        """One fault; False if the run was over before it struck."""
        limit = 50_000 if kind == "full disk" else None
        process, stage = self.at_a_random_moment(folder, stage, limit)
        if kind == "full disk":
            process.join()
        elif process.is_alive():
            os.kill(process.pid, {"SIGTERM": 15, "SIGINT": 2}.get(kind, 9))
            process.join()
        said = folder.with_suffix(".log").read_text(errors="replace")
        if process.exitcode == 0:
            return False
        expected = {"SIGTERM": (143,), "SIGINT": (130,), "full disk": (2,)}.get(kind, (-9,))
        if process.exitcode not in expected:
            self.problems.append(f"{kind} during {stage}: exit code {process.exitcode}\n{said[-2000:]}")
        if process.exitcode in (143, 130) and "Type the same command again" not in said:
            self.problems.append(f"{kind} during {stage} does not say how to go on: {said[-500:]}")
        if kind == "full disk" and "Traceback" in said:
            self.problems.append(f"full disk during {stage} shows a traceback: {said[-2000:]}")
        if kind == "truncated":
            checkpoints = sorted(folder.glob("checkpoints/*/0*.safetensors"), key=lambda path: path.stat().st_mtime)
            if not checkpoints:
                kind = "kill -9"
            else:
                size = checkpoints[-1].stat().st_size
                os.truncate(checkpoints[-1], self.rng.randrange(size))
        self.injected[kind, stage] += 1
        return True

    def one_run(self, plan: list[tuple[str, str]]) -> None:
        """A run with one fault after another, in the order of stages, then left alone to its end."""
        folder = self.work / f"run{self.runs}"
        for kind, stage in plan:
            if not self.inject(folder, kind, stage):
                break
        process = self.start(folder)
        process.join()
        self.runs += 1
        wrong = [name for name in COMPARED if not same_bytes(folder / name, self.whole / name)]
        wrong += [path.name for path in self.whole.glob("logs/*") if steps(path) != steps(folder / "logs" / path.name)]
        self.identical += not wrong and process.exitcode == 0
        print(f"run {self.runs}: {sum(self.injected.values())} faults so far, {self.identical} identical", flush=True)
        if wrong or process.exitcode != 0:
            said = folder.with_suffix(".log").read_text(errors="replace")[-2000:]
            self.problems.append(
                f"run {self.runs} with {plan}: exit code {process.exitcode}, differing: {wrong}; {said}"
            )

    def run(self, kills: int, others: int) -> None:
        """At least ``kills`` kills, and ``others`` runs with every other fault."""
        while sum(number for (kind, _), number in self.injected.items() if kind == "kill -9") < kills:
            self.one_run([("kill -9", stage) for stage in STAGES for _ in range(2 if kills > 3 else 1)])
        for _ in range(others):
            self.one_run(list(OTHERS))

    def table(self) -> str:
        """Faults by kind and stage, as Markdown."""
        columns = sorted({stage for _, stage in self.injected}, key=ORDER.index)
        lines = [f"| fault | {' | '.join(columns)} | all |", "|---" * (len(columns) + 2) + "|"]
        for kind in sorted({kind for kind, _ in self.injected}):
            numbers = [self.injected[kind, stage] for stage in columns]
            lines.append(f"| {kind} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
        total = sum(self.injected.values())
        lines += ["", f"{total} faults in {self.runs} runs; {self.identical} of {self.runs} ended with the bytes of the "
                  f"uninterrupted run; {len(self.problems)} problems."]  # fmt: skip
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--others", type=int, default=3, help="runs with every other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for fault_drill.md and fault_drill.json")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = os.environ["OMP_NUM_THREADS"] = "1"  # the smallest models gain nothing from threads
    # Python 3.11's fork server imports nothing from sys.path's own entries
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    with tempfile.TemporaryDirectory() as work:
        drill = Drill(Path(work), write_job(Path(work)), args.seed)
        drill.reference()
        drill.run(args.kills, args.others)
    print(drill.table())
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        command = f"python examples/fault_drill.py --kills {args.kills} --others {args.others} --seed {args.seed}"
        (args.output / "fault_drill.md").write_text(f"`{command}`\n\n{drill.table()}\n")
        counts = [{"fault": kind, "stage": stage, "number": n} for (kind, stage), n in sorted(drill.injected.items())]
        data = {"command": command, "faults": counts, "runs": drill.runs, "identical": drill.identical}
        (args.output / "fault_drill.json").write_text(json.dumps(data, indent=1) + "\n")
    if drill.problems or drill.identical < drill.runs:
        raise SystemExit("\n\n".join(drill.problems) or "some runs are not identical")


if __name__ == "__main__":
    main()
