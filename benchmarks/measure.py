"""What all sections share: models of two sizes, side-by-side timing, tables, and the line that names the machine."""

from __future__ import annotations

import copy
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers
from matplotlib.figure import Figure
from peft import get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from peft_noah import Architecture, NoahConfig, __version__
from peft_noah.data.images import ImageSplit
from peft_noah.fast.hardware import has_amx
from peft_noah.formatting import table

#: random weights; what they are does not change the time
SIZES = {
    "ViT-B/16": ViTConfig(num_labels=100),
    "small": ViTConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        num_hidden_layers=12,
        image_size=64,
        patch_size=8,
        num_labels=100,
    ),
}
BATCH = {"ViT-B/16": 4, "small": 16}


@dataclass
class Table:
    """One table of the report.

    Args:
        title: a line above it.
        header: names of the columns.
        rows: cells as they are printed.
        note: what was measured, and how; a line below it.
        values: the numbers behind the cells, for the JSON file.
        curves: points (x, y) by name, for a figure with a panel for each; None: no figure.
    """

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]]
    note: str = ""
    values: dict = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] | None = None

    def markdown(self) -> str:
        """Title, table and note."""
        return f"### {self.title}\n\n{table(self.header, self.rows)}\n\n{self.note}".rstrip() + "\n"

    def plot(self, path: Path) -> None:
        """Draw the curves, each axis from zero, so that what is proportional is a line through the corner."""
        figure = Figure(figsize=(3 * len(self.curves), 3), layout="constrained")
        for axes, (name, points) in zip(
            figure.subplots(1, len(self.curves), squeeze=False)[0], self.curves.items(), strict=True
        ):
            axes.plot(*zip(*points, strict=True), marker="o")
            axes.set(xlabel=name, xlim=(0, None), ylim=(0, None))
        figure.axes[0].set_ylabel("ms")
        figure.savefig(path, dpi=150)

    def to_dict(self) -> dict:
        """Plain data for the JSON file."""
        return asdict(self)


def machine() -> str:
    """One line: processor, threads, versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{lines[0]}, {len(lines)} cores" if lines else cpu
    isa = torch.backends.cpu.get_cpu_capability()
    isa += " and AMX" if has_amx() else ""  # what multiplies bfloat16
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{cpu} ({isa}){gpu}, {torch.get_num_threads()} thread, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, peft-noah {__version__}"
    )


def make_supernet(config: ViTConfig, **options) -> nn.Module:
    """A supernet of recipe "released" on a ViT with random weights; by default without dropout and stochastic depth."""
    torch.manual_seed(0)
    options = {"dropout": 0.0, "drop_path": 0.0, "init_weights": False, **options}
    return get_peft_model(ViTForImageClassification(config), NoahConfig(recipe="released", **options))


def share(model: nn.Module) -> nn.Module:
    """A copy of a model on the same frozen weights."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})


def make_images(config: ViTConfig, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (B, 3, H, W) and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, config.image_size, config.image_size, generator=generator)
    return images, torch.randint(config.num_labels, (size,), generator=generator)


def make_split(config: ViTConfig, size: int) -> ImageSplit:
    """The same as a split of a task, in bytes."""
    images, labels = make_images(config, size)
    return ImageSplit((images * 32 + 128).clamp(0, 255).to(torch.uint8), labels)


def as_floats(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as what a backbone takes."""
    return (pixels.float() - 128) / 32


def sample(model: nn.Module, count: int, seed: int = 0) -> list[Architecture]:
    """Subnets of the model's search space."""
    space, rng = model.get_search_space(), random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def make_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype=None) -> Callable[[], None]:
    """One step of training: forward, cross-entropy, backward, AdamW."""
    kind = images.device.type
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=kind == "cuda")
    model.train()

    def step() -> None:
        with torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = logits_of(model, images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_sampled_step(
    model: nn.Module, step: Callable[[], None], subnets: Sequence[Architecture]
) -> Callable[[int], None]:
    """A step of the model with the subnet of a round."""

    def call(number: int) -> None:
        model.set_architecture(subnets[number])
        step()

    return call


def make_score(
    model: nn.Module, batches: Sequence[torch.Tensor], subnets: Sequence[Architecture], dtype: torch.dtype | None
) -> Callable[[int], torch.Tensor]:
    """Logits (images, classes) of the subnet of a round, without gradients."""

    @torch.inference_mode()
    def score(number: int) -> torch.Tensor:
        model.set_architecture(subnets[number])
        with torch.autocast(batches[0].device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return torch.cat([logits_of(model, batch) for batch in batches])

    return score


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits of our model or of the reference."""
    output = model(pixel_values=images)
    return output if isinstance(output, torch.Tensor) else output.logits


def check_equal(logits: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-4) -> float:
    """Largest difference of logits, relative to the largest of them.

    Raises:
        ValueError: if it is above the tolerance: then the times compare different things.
    """
    error = ((logits.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    if not error <= tolerance:
        raise ValueError(
            f"{what}: logits differ from the reference's by {error:.1e} of the largest; allowed {tolerance}."
        )
    return error


def gpu_clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def interleave(
    functions: dict[str, Callable[[int], None]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each function in each round; a round calls all with its number, one after the other.

    By default processor time of the one thread that computes: on a quiet core it is what a clock shows, on a shared one
    it leaves out the time that others took.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-warmup, rounds):
        for name, function in functions.items():
            start = clock()
            function(number % rounds)
            if number >= 0:
                times[name].append(clock() - start)
    return times


def ratios(times: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """How often ``name`` goes into ``base``: median over rounds, lower and upper quartile; above 1 is faster."""
    values = sorted(b / a for a, b in zip(times[name], times[base], strict=True))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return statistics.median(values), low, high


def speed_table(title: str, times: dict[str, dict[str, list[float]]], note: str, base: str = "G") -> Table:
    """Rows: variants. Columns: sizes, each with the median time and the ratio to ``base`` with its quartiles."""
    names = list(dict.fromkeys(name for columns in times.values() for name in columns))
    header = ["", *(f"{size}: {what}" for size in times for what in ("ms", f"{base} / this"))]
    rows = []
    for name in names:
        row = [name]
        for columns in times.values():
            if name not in columns:
                row += ["", ""]
                continue
            median, low, high = ratios(columns, name, base)
            row += [f"{1e3 * statistics.median(columns[name]):.1f}", f"{median:.2f} ({low:.2f} to {high:.2f})"]
        rows.append(row)
    return Table(title, header, rows, note, values={"seconds": times})
