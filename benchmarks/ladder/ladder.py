"""The ladder: hand-made designs of adapters under one recipe, to see where the points are.

    python benchmarks/ladder/ladder.py run tasks/ --model dinov2=my-dinov2-vit --model tiny=my-tiny-vit
    python benchmarks/ladder/ladder.py report

``tasks/`` holds one folder of parquet files or images a task. Each cell trains one design on all labelled images of one
task (train + validation) with the paper's recipe for a subnet, and then reads the test images once. It appends one line to
``results.jsonl``. The rung ``race`` is `peft-noah run --strategy race` at the same cost: its full training has half the epochs.
That of ``race x 2`` has all of them, so it costs twice as much. The command can be killed and typed again, and typed in several
terminals to share the work.
Nothing is chosen on test images: they are reported, and a default for one task is chosen on the other tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from searched import SEARCHED, search_subnet

HERE = Path(__file__).parent
RESULTS, TABLE, PLOT = HERE / "results.jsonl", HERE / "ladder.md", HERE / "ladder.png"
#: how much of the old average a step keeps, in the column of averaged weights
DECAY = 0.99


@dataclass(frozen=True)
class Rung:
    """One hand-made design.

    Args:
        modules: dim in every block, by row of the architecture.
        targets: of LoRA, as ``NoahConfig.target_modules``; None: query and key.
        config: further options of `NoahConfig`.
        training: further options of `TrainingSettings`.
        head_start: fit the classifier before the modules are trained.
        by_norm: LoRA's scale on each Linear in proportion to the mean norm of the rows of its weight; the median Linear has
            the scale that ``config`` says.
    """

    modules: dict[str, int]
    targets: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    head_start: bool = False
    by_norm: bool = False


ATTENTION, MLP = ["query", "key", "value", "o_proj"], ["fc1", "fc2"]
ALL = [*ATTENTION, *MLP]


def _lora(rank: int, scale: float, targets: Any = None, **options: Any) -> Rung:
    return Rung({"lora": rank}, targets, {"lora_scale": scale}, **options)


#: at about the parameters of LoRA of rank 8 on query and key, the paper's design
RUNGS: dict[str, Rung] = {
    "qk r8 s1": _lora(8, 1.0),
    "all r2 s1": _lora(2, 1.0, ALL),
    "all r2 s4": _lora(2, 4.0, ALL),
    "all r2 s4 head": _lora(2, 4.0, ALL, head_start=True),
    "qk r8 s4": _lora(8, 4.0),
    "all r2 s12": _lora(2, 12.0, ALL),
    "all r2 s16": _lora(2, 16.0, ALL),
    "mlp r3 s4": _lora(3, 4.0, MLP),
    "attention r4 s4": _lora(4, 4.0, ATTENTION),
    "adapter 16": Rung({"adapter": 16}),
    "mix s4": Rung({"lora": 1, "adapter": 8, "vpt": 5}, ALL, {"lora_scale": 4.0}),
    "all r2 s1 head": _lora(2, 1.0, ALL, head_start=True),
    "all r2 s1/4": _lora(2, 0.25, ALL),
    "qk r8 s1/4": _lora(8, 0.25),
    "qk r8 s16": _lora(8, 16.0),
    "all r2 s4 smooth": _lora(2, 4.0, ALL, training={"label_smoothing": 0.1}),
    "all r2 s4 drop": Rung({"lora": 2}, ALL, {"lora_scale": 4.0, "drop_path": 0.1}),
    "all r2 s4 by norm": _lora(2, 4.0, ALL, by_norm=True),
    "all r2 s12 by norm": _lora(2, 12.0, ALL, by_norm=True),
    "all r8 s4": _lora(8, 4.0, ALL),
    "all r2 s64": _lora(2, 64.0, ALL),
    "adapter+ 8": Rung({"adapter_plus": 8}),
}
SIX = ("qk r8 s1", "all r2 s1", "all r2 s4", "all r2 s4 head", "adapter 16", "mix s4")


#: a race of the package's designs, in place of a design: how many times the cost of a design it has
RACES = {"race": 1, "race x 2": 2}


@dataclass(frozen=True)
class Part:
    """A part of the ladder: a backbone, a length of training, seeds."""

    backbone: str
    epochs: int
    seeds: tuple[int, ...]
    rungs: tuple[str, ...] = tuple(RUNGS)


PARTS = (
    Part(
        "tiny",
        20,
        (0,),
        (
            "qk r8 s1",
            "all r2 s1",
            "all r2 s4",
            "all r2 s12",
            "all r2 s16",
            "all r2 s64",
            "adapter+ 8",
            "mix s4",
            *RACES,
        ),
    ),
    Part("tiny", 20, (0,), ("noah wide s16", "narrow wide s16", "noah vtab s16")),
    Part("tiny", 20, (0,), ("noah wide s16 early", "noah wide s1")),
    Part("tiny", 20, (0,), ("noah vtab s1",)),
    Part("dinov2", 20, (0,), ("qk r8 s1", "all r2 s1", "all r2 s4", *RACES)),
    Part("tiny", 100, (0,), SIX),
    Part("dinov2", 20, (0,), SIX),
    Part("dinov2", 10, (0,), SIX),
    Part("tiny", 100, (0,)),
    Part("dinov2", 20, (0,)),
    Part("dinov2", 20, (1, 2), SIX),
    Part("tiny", 100, (1, 2), SIX),
    Part("dinov2", 10, (0,)),
    Part("tiny", 10, (0,)),
)
#: rungs that are compared with each other, beside the lead that each has over the first one of its part
PAIRS = (
    ("race", "all r2 s12"),
    ("race", "all r2 s4"),
    ("race x 2", "all r2 s4"),
    ("all r2 s12 by norm", "all r2 s12"),
    ("all r2 s4 by norm", "all r2 s4"),
    ("noah wide s16", "noah vtab s16"),
    ("narrow wide s16", "noah wide s16"),
    ("narrow wide s16", "noah wide s16 early"),
)
#: how images reach each backbone
PREPROCESSING = {
    "dinov2": {"image_size": 98, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "tiny": {},
}


def cells(tasks: list[str]) -> Iterator[dict[str, Any]]:
    """All cells, the most telling ones first; all rungs of a task stand together, so that what is there can be compared."""
    for part in PARTS:
        for task in tasks:
            for rung in part.rungs:
                for seed in part.seeds:
                    yield {"backbone": part.backbone, "epochs": part.epochs, "rung": rung, "task": task, "seed": seed}


def done(results: Path) -> list[dict[str, Any]]:
    """The cells in a results file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def key(cell: dict[str, Any]) -> tuple:
    return tuple(cell[name] for name in ("backbone", "epochs", "rung", "task", "seed"))


# ---------------------------------------------------------------------- training


def race_cell(cell: dict[str, Any], model_folder: str, task_folder: Path) -> dict[str, Any]:
    """Run a race on a task, with full trainings as long as its cost leaves; nothing of the run is kept but its results."""
    from peft_noah.progress import Reporter
    from peft_noah.results.report import RunReport
    from peft_noah.run.context import RunContext
    from peft_noah.run.settings import RunSettings
    from peft_noah.run.stages import run_everything
    from peft_noah.searching.race import Race

    times = RACES[cell["rung"]]
    images = {
        f"image_{name}": value for name, value in PREPROCESSING[cell["backbone"]].items() if name != "image_size"
    }
    settings = RunSettings(
        model=model_folder,
        dataset=str(task_folder),
        strategy="race",
        epochs=cell["epochs"] * times // 2,  # a race costs two of them
        seed=cell["seed"],
        mixed_precision="bf16",
        image_size=PREPROCESSING[cell["backbone"]].get("image_size"),
        **images,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = RunContext(Path(folder) / "run", settings, Reporter(enabled=False))
        run_everything(run)
        (result,) = RunReport.load(run.folder / "results.json").results
        race = Race.load(run.folder / "race.json")
        (log,) = run.folder.glob("logs/race-on-*.jsonl")
        loss = json.loads(log.read_text().splitlines()[-1])["loss"]
    labelled = len(run.splits.train) + len(run.splits.validation)
    return {
        **cell,
        "parameters": result.parameters,
        "training_loss": round(loss, 5),
        "test": round(result.test, 5),
        "n_test": result.n_test,
        "image_passes": cell["epochs"] * times * labelled,
        "seconds": round(result.seconds, 1),
        "winner": race.designs[race.winner].name,
    }


def train_cell(cell: dict[str, Any], model_folder: str, task_folder: Path) -> dict[str, Any]:
    """Train what a rung says on a task, and measure it."""
    if cell["rung"] in RACES:
        return race_cell(cell, model_folder, task_folder)
    from peft_noah.data import Normalizer, Preprocessing, load_splits
    from peft_noah.run.models import load_backbone
    from peft_noah.training import evaluate, make_accelerator

    started = time.perf_counter()
    preprocessing = Preprocessing.from_backbone(model_folder, **PREPROCESSING[cell["backbone"]])
    splits = load_splits(task_folder, preprocessing)
    normalize, accelerator = Normalizer(preprocessing), make_accelerator("bf16")
    backbone = load_backbone(model_folder, splits, cell["seed"])
    loaded = time.perf_counter()
    if cell["rung"] in SEARCHED:
        rung = SEARCHED[cell["rung"]]
        model, found = search_subnet(rung, backbone, splits, normalize, accelerator, cell["seed"])
    else:
        model, found = train_design(cell, backbone, splits, normalize, accelerator)
    trained = time.perf_counter()
    test = evaluate(model.eval(), splits.test, normalize, accelerator)
    if average := found.pop("average", None):
        with average.applied():
            found["test_averaged"] = round(evaluate(model, splits.test, normalize, accelerator), 5)
    return {
        **cell,
        "test": round(test, 5),
        "n_test": len(splits.test),
        "seconds": round(trained - loaded, 1),
        "seconds_in_all": round(time.perf_counter() - started, 1),
        **found,
    }


def train_design(cell: dict[str, Any], backbone: Any, splits: Any, normalize: Any, accelerator: Any) -> tuple:
    """Train the design of a rung; the model, and what is to be known of it, with the average of its weights."""
    from peft import get_peft_model

    from peft_noah import Architecture, NoahConfig
    from peft_noah.run.heats import classifiers
    from peft_noah.run.models import count_trainable
    from peft_noah.training import TrainingSettings, train
    from peft_noah.training.averaging import WeightAverage
    from peft_noah.training.head_start import start_head

    rung, images = RUNGS[cell["rung"]], splits.train + splits.validation
    architecture = Architecture.uniform(backbone.config.num_hidden_layers, **rung.modules)
    targets = list(rung.targets) if rung.targets else None
    model = get_peft_model(backbone, NoahConfig(architecture=architecture, target_modules=targets, **rung.config))
    if rung.by_norm:
        scale_by_norm(model)
    found: dict[str, Any] = {}
    if rung.head_start:
        (head,) = classifiers(model)
        fit = start_head(model, head, images, normalize, accelerator)
        found["head"] = {"ridge": fit.ridge, "scale": fit.scale, "accuracy": round(fit.accuracy, 4)}
    settings = TrainingSettings.named("paper", "subnet", epochs=cell["epochs"], seed=cell["seed"], **rung.training)
    average = WeightAverage(model, DECAY)
    log = train(model, images, normalize, settings, accelerator, on_step=lambda *_: average.update())
    return model, {
        "parameters": count_trainable(model)[0],
        "training_loss": round(log.losses[-1], 5),
        "image_passes": round(cell["epochs"] * len(images) + (len(images) / 3 if rung.head_start else 0)),
        "average": average,
        **found,
    }


def scale_by_norm(model: Any) -> None:
    """Multiply LoRA's scale on each Linear by the root mean square of the norms of its weight's rows over the median of them."""
    from peft_noah.tuner.layer import NoahLayer

    found = {}
    for layer in (layer for layer in model.modules() if isinstance(layer, NoahLayer)):
        for module in layer.prompt_modules("default"):
            found[module] = layer.base_layer.weight.float().square().sum(1).mean().sqrt().item()
    middle = statistics.median_high(found.values())
    for module, norm in found.items():
        module.scale *= norm / middle


def run(arguments: argparse.Namespace) -> None:
    """Fill in what is missing, one cell after the other; another process takes other cells."""
    from peft_noah.run.quiet import quiet

    quiet()
    models = dict(text.split("=", 1) for text in arguments.model)
    tasks = sorted(path.name for path in Path(arguments.tasks).iterdir() if path.is_dir())
    locks = arguments.locks
    locks.mkdir(parents=True, exist_ok=True)
    for cell in cells(tasks):
        if cell["backbone"] not in models or key(cell) in map(key, done(arguments.results)):
            continue
        name = "-".join(str(part) for part in key(cell)).replace(" ", "_").replace("/", "of")
        try:
            with FileLock(locks / f"{name}.lock", timeout=0):
                if key(cell) in map(key, done(arguments.results)):
                    continue
                result = train_cell(cell, models[cell["backbone"]], Path(arguments.tasks) / cell["task"])
                with FileLock(locks / "results.lock"), arguments.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
        except Timeout:
            continue
        print(f"{' '.join(map(str, key(cell)))}: {100 * result['test']:.1f} % in {result['seconds']} s", flush=True)


# ---------------------------------------------------------------------- report


def report(arguments: argparse.Namespace) -> None:
    """Write the table and the plot of what there is."""
    from peft_noah.formatting import table

    found = done(arguments.results)
    firsts: dict[tuple[str, int], str] = {}
    for part in PARTS:
        firsts.setdefault((part.backbone, part.epochs), part.rungs[0])
    sections = []
    for (backbone, epochs), first in firsts.items():
        rows = [row for row in found if (row["backbone"], row["epochs"]) == (backbone, epochs)]
        if rows:
            header, lines = _section(rows, first)
            sections.append(f"## {backbone}, {epochs} epochs\n\n{table(header, lines)}\n{_pairs(rows)}")
    TABLE.write_text(_HEAD + "\n".join(sections))
    _plot(found)


_HEAD = """# The ladder

Test accuracy (%) of hand-made designs, trained on train + validation images with one recipe, mean over seeds. `mean` is over
tasks. `lead` is the mean over tasks of the difference to the rung without a lead on the same task, with its standard error over
tasks and the number of tasks that both have. `k parameters` are thousands of trained ones besides the classifier, the mean over tasks.
`averaged` is the mean accuracy of the averaged weights of the same trainings.
`loss` is the mean training loss of the last epoch, `passes` are image passes in thousands, forward and backward. Seconds stand in
`results.jsonl`; the machine was shared, so they rank nothing.
`race` is `peft-noah run --strategy race` at the same cost, `race x 2` at twice that. What `noah` and `narrow` are stands in `searched.py`. `chosen on the other tasks` is,
for each task, the design that has the best mean on the others. Written by `ladder.py report`.

"""


def _section(rows: list[dict], reference: str) -> tuple[list[str], list[list[str]]]:
    tasks = sorted({row["task"] for row in rows})
    header = [
        "rung",
        "k parameters",
        *tasks,
        "mean",
        "lead",
        "averaged",
        "loss",
        "passes",
        "seeds",
    ]
    first = _by_task([row for row in rows if row["rung"] == reference], "test")
    lines = []
    for rung in (*RUNGS, *SEARCHED, *RACES):
        mine = [row for row in rows if row["rung"] == rung]
        if mine:
            lines.append(_line(rung, mine, tasks, {} if rung == reference else first))
    if chosen := chosen_elsewhere(rows, tasks):
        mean, lead = f"{100 * sum(chosen.values()) / len(tasks):.1f}", _lead(chosen, first)
        lines.append(
            ["chosen on the other tasks", "", *(f"{100 * chosen[t]:.1f}" for t in tasks), mean, lead, *[""] * 4]
        )
    return header, lines


def chosen_elsewhere(rows: list[dict], tasks: list[str]) -> dict[str, float]:
    """Test accuracy by task of the design that is best in the mean of the other tasks; of designs that have all tasks."""
    found = {rung: _by_task([row for row in rows if row["rung"] == rung], "test") for rung in RUNGS}
    whole = {rung: test for rung, test in found.items() if set(test) == set(tasks)}
    if len(whole) < 2 or len(tasks) < 2:
        return {}
    best = {task: max(whole.values(), key=lambda test: sum(test[t] for t in tasks if t != task)) for task in tasks}
    return {task: test[task] for task, test in best.items()}


def _by_task(rows: list[dict], name: str) -> dict[str, float]:
    """Mean over seeds of a number, by task."""
    tasks: dict[str, list[float]] = {}
    for row in rows:
        if name not in row:  # a race has no averaged weights beside its own
            continue
        tasks.setdefault(row["task"], []).append(row[name])
    return {task: sum(values) / len(values) for task, values in tasks.items()}


def _line(rung: str, rows: list[dict], tasks: list[str], first: dict[str, float]) -> list[str]:
    test = _by_task(rows, "test")
    whole = len(test) == len(tasks)

    def mean(name: str, factor: float = 100.0, digits: int = 1) -> str:
        values = _by_task(rows, name)
        if not values:
            return ""
        return f"{factor * sum(values.values()) / len(values):.{digits}f}" if whole else ""

    return [
        rung,
        f"{sum(row['parameters'] for row in rows) / len(rows) / 1000:.0f}",
        *(f"{100 * test[task]:.1f}" if task in test else "" for task in tasks),
        mean("test"),
        _lead(test, first),
        mean("test_averaged"),
        mean("training_loss", 1.0, 3),
        mean("image_passes", 0.001, 0),
        str(len({row["seed"] for row in rows})),
    ]


def _lead(test: dict[str, float], first: dict[str, float]) -> str:
    """Mean difference over the tasks that both have, its standard error, and the number of tasks."""
    from peft_noah.results.statistics import mean_and_standard_error

    if not (leads := _leads(test, first)):
        return ""
    mean, error = mean_and_standard_error(list(leads.values()))
    return f"{mean:+.1f}" + ("" if error is None else f" ± {error:.1f}") + f" ({len(leads)})"


def _leads(test: dict[str, float], first: dict[str, float]) -> dict[str, float]:
    """Points ahead, by task."""
    return {task: 100 * (test[task] - first[task]) for task in sorted(test.keys() & first.keys())}


def _pairs(rows: list[dict]) -> str:
    """Sentences with the differences of the PAIRS that are there."""
    said = ""
    for pair in PAIRS:
        test, other = (_by_task([row for row in rows if row["rung"] == rung], "test") for rung in pair)
        if test and other:
            said += f"\n`{pair[0]}` is {_lead(test, other)} points ahead of `{pair[1]}`.\n"
    return said


#: what the plot calls backbones, and the rung of the default design on each
BACKBONES = {"tiny": ("vit-tiny-64, width 128", "all r2 s12"), "dinov2": ("DINOv2-small, width 384", "all r2 s4")}
_WORDS = {"qk r8": "LoRA on query and key", "all r2": "LoRA on all sites", "mix": "LoRA, Adapter and tokens"}
_WORDS |= {
    "noah wide": "NOAH over all sites",
    "narrow wide": "narrowing over all sites",
    "noah vtab": "NOAH, the paper's space",
}
_WORDS |= {"adapter+ 8": "Adapter+", "race": "race, at the same cost", "race x 2": "race, at twice the cost"}


def _in_words(rung: str, default: str) -> str:
    """What the plot calls a rung."""
    what, _, scale = rung.partition(" s")
    words = _WORDS.get(what, what) + (f", scale {scale}" if scale else "")
    return f"{words} (default)" if rung == default else words


def _plot(found: list[dict]) -> None:
    """Lead over the paper's LoRA by task, one panel for each backbone and length that has other rungs; those of few tasks are
    in the table alone."""
    from matplotlib.figure import Figure

    parts = {}
    for part in dict.fromkeys((part.backbone, part.epochs) for part in PARTS):
        rows = [row for row in found if (row["backbone"], row["epochs"]) == part]
        tests = {r: _by_task([x for x in rows if x["rung"] == r], "test") for r in (*RUNGS, *SEARCHED, *RACES)}
        leads = {rung: _leads(test, tests["qk r8 s1"]) for rung, test in tests.items()}
        most = max(map(len, leads.values()))
        leads = {rung: mine for rung, mine in leads.items() if len(mine) > most / 2}
        if len(leads) > 1:
            parts[part] = leads
    if not parts:
        return
    figure = Figure(figsize=(9, 0.9 * len(parts) + 0.32 * sum(map(len, parts.values()))), layout="constrained")
    heights = [1.5 + 0.5 * len(leads) for leads in parts.values()]
    panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    colours = {task: f"C{n}" for n, task in enumerate(sorted({row["task"] for row in found}))}
    for axes, ((backbone, epochs), leads) in zip(panels, parts.items(), strict=True):
        for task, colour in colours.items():
            points = [(mine[task], y) for y, mine in enumerate(leads.values()) if task in mine]
            if points:
                axes.plot(*zip(*points, strict=True), "o", ms=4, alpha=0.7, color=colour, label=task)
        most = max(len(mine) for rung, mine in leads.items() if rung != "qk r8 s1")
        for y, mine in enumerate(leads.values()):
            if len(mine) < most:  # a mean of other tasks would not compare
                continue
            axes.plot([sum(mine.values()) / len(mine)] * 2, [y - 0.35, y + 0.35], "k-", lw=2)
        axes.axvline(0, color="0.7", lw=1, zorder=0)
        name, default = BACKBONES[backbone]
        axes.set_yticks(range(len(leads)), [_in_words(rung, default) for rung in leads])
        axes.set_ylim(len(leads) - 0.4, -0.6)
        axes.set_xlabel("test accuracy, points ahead of LoRA on query and key; bar: mean over tasks")
        axes.set_title(f"{name}, {epochs} epochs", loc="left", fontsize=10)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    runs = commands.add_parser("run", help="fill in what is missing")
    runs.add_argument("tasks", help="folder with one folder a task")
    runs.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="dinov2=... or tiny=...")
    runs.add_argument("--locks", type=Path, default=Path("runs/ladder-locks"), help="folder of lock files")
    runs.set_defaults(call=run)
    commands.add_parser("report", help="write ladder.md and ladder.png").set_defaults(call=report)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
