"""Against what a user would pick instead: PEFT's LoRA, trained by transformers' Trainer or in a plain Accelerate loop.

Two tables for each size: a step alone, all ways one after the other in one process; and the whole process, from its start
to the saved adapter, each way in a process of its own, with the job ``peft-noah run --strategy race`` beside them. Images
are decoded beforehand for all ways but the job, which reads them from a folder.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from measure import (
    SIZES,
    Table,
    as_floats,
    interleave,
    make_images,
    make_sampled_step,
    make_split,
    make_step,
    make_supernet,
    ratios,
    sample,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from peft_noah import Architecture, NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.training.memory import peak_memory

BASE = "PEFT, LoRA q,k r=8"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """A backbone with random weights, which take the same time as any others.

    Args:
        config: of the ViT.
        batch: images of a step.
        rounds: of the table of steps.
        images: training images of a whole process; 0: none is measured.
        epochs: of a whole process; enough for the job to race.
    """

    config: ViTConfig
    batch: int
    rounds: int
    images: int = 0
    epochs: int = 0


def _vit(width: int, heads: int, pixels: int, patch: int) -> ViTConfig:
    return ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=pixels,
        patch_size=patch,
        num_labels=10,
    )


PEFT_SIZES = {
    "vit-tiny-64": Size(_vit(128, 4, 64, 16), 64, 10, 480, 20),
    "dinov2-small, 98 px": Size(_vit(384, 6, 98, 14), 32, 3, 1000, 7),
    "dinov2-small, 224 px": Size(_vit(384, 6, 224, 14), 8, 3),
    "ViT-B/16, 224 px": Size(SIZES["ViT-B/16"], 4, 3),
}


def make_peft_lora(config: ViTConfig, *, all_sites: bool = False) -> nn.Module:
    """PEFT's LoRA on a ViT: r=8 on query and key, or r=2 on every Linear of a block; it trains with the classifier."""
    torch.manual_seed(0)
    sites = ["q_proj", "k_proj", *(["v_proj", "o_proj", "fc1", "fc2"] if all_sites else [])]
    rank = 2 if all_sites else 8
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=sites, modules_to_save=["classifier"])
    return get_peft_model(ViTForImageClassification(config), lora)


def make_lora(config: ViTConfig, *, all_sites: bool = False) -> nn.Module:
    """The same by this package; on all sites it is the default design of a race."""
    torch.manual_seed(0)
    options = {"target_modules": "all-linear"} if all_sites else {}
    rows = Architecture.uniform(config.num_hidden_layers, lora=2 if all_sites else 8)
    return get_peft_model(ViTForImageClassification(config), NoahConfig(architecture=rows, **options))


MODELS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    BASE: make_peft_lora,
    "PEFT, LoRA on all sites r=2": lambda config: make_peft_lora(config, all_sites=True),
    "ours, LoRA q,k r=8": make_lora,
    "ours, LoRA on all sites r=2, the default design": lambda config: make_lora(config, all_sites=True),
    "ours, a supernet's step": lambda config: make_supernet(config, dropout=0.0),
}


def run(quick: bool) -> Iterator[Table]:
    """The smallest size alone where it is to be quick."""
    for name, size in list(PEFT_SIZES.items())[: 1 if quick else None]:
        yield steps_table(name, size, 3 if quick else size.rounds)
        if size.images:
            yield profile_table(name, size)
    for name, size in PEFT_SIZES.items():
        for precision in ("no", "bf16") if name == "vit-tiny-64" else ("bf16",):
            if size.images and not (quick and (name, precision) != ("vit-tiny-64", "bf16")):
                yield whole_table(name, size, precision)


# ------------------------------------------------------------------ a step alone


def steps_table(name: str, size: Size, rounds: int, device: torch.device = CPU) -> Table:
    """All ways in turn, in float32 and in bfloat16."""
    times = {}
    for label, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        images, labels = (x.to(device) for x in make_images(size.config, size.batch))
        with ExitStack() as stack:
            calls = {}
            for way, make in MODELS.items():
                model = make(size.config).to(device)
                if not way.startswith("PEFT"):
                    stack.enter_context(fast_forward(model))
                step = make_step(model, images, labels, dtype)
                subnets = sample(model, rounds) if "supernet" in way else None
                calls[way] = make_sampled_step(model, step, subnets) if subnets else lambda _, step=step: step()
            times[label] = interleave(calls, rounds)
    header = ["", *(f"{label}: {what}" for label in times for what in ("ms", "PEFT / this"))]
    rows = []
    for way in MODELS:
        row = [way]
        for columns in times.values():
            median, low, high = ratios(columns, way, BASE)
            row += [f"{1e3 * statistics.median(columns[way]):.0f}", f"{median:.2f} ({low:.2f} to {high:.2f})"]
        rows.append(row)
    note = (
        f"Batch {size.batch}; forward, cross-entropy, backward and AdamW, in turn in each of {rounds} rounds; processor time of "
        f"one thread. PEFT / this: of LoRA q,k in the same precision; median and quartiles.{load()}"
    )
    return Table(f"A step of {name}", header, rows, note, values={"seconds": times})


#: what an operator does in a step, by the beginning of its name; the first that fits
KINDS = {
    "frozen products": ("mkldnn::_linear_pointwise",),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot", "aten::_flash"),
    "GELU": ("aten::gelu",),
    "norms": ("aten::native_layer_norm",),
    "other products": ("aten::mm", "aten::addmm"),
    "casts, copies and sums": ("aten::copy_", "aten::add", "aten::cat", "aten::mul", "aten::fill_", "aten::clone"),
}


def profile_table(name: str, size: Size) -> Table:
    """Where a step's time goes, by kind of operator, in bfloat16."""
    images, labels = make_images(size.config, size.batch)
    shares, spent = {}, {}
    for way in list(MODELS)[:4]:
        model = MODELS[way](size.config)
        with ExitStack() as stack:
            if not way.startswith("PEFT"):
                stack.enter_context(fast_forward(model))
            step = make_step(model, images, labels, torch.bfloat16)
            step()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                step()
        times: dict[str, float] = dict.fromkeys([*KINDS, "the rest"], 0.0)
        for event in profile.key_averages():
            kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "the rest")
            times[kind] += event.self_cpu_time_total
        spent[way] = sum(times.values())
        shares[way] = {kind: value / spent[way] for kind, value in times.items()}
    rows = [[kind, *(f"{100 * shares[way][kind]:.0f} %" for way in shares)] for kind in (*KINDS, "the rest")]
    note = (
        f"One step of {size.batch} images after another, torch.profiler. PEFT's frozen products are among the other products, "
        f"and LoRA's in all.{load()}"
    )
    return Table(f"Where a step of {name} in bfloat16 goes", ["", *shares], rows, note, values={"shares": shares})


# ------------------------------------------------------------------ the whole process

#: the rows of a table of processes
TITLES = {
    "trainer": "(a) PEFT LoRA q,k, Trainer",
    "accelerate": "(b) PEFT LoRA q,k, Accelerate loop",
    "ours q,k": "(c) ours, LoRA q,k",
    "ours all": "(c) ours, LoRA on all sites",
    "job": "the whole job: `peft-noah run --strategy race`",
}


def whole_table(name: str, size: Size, precision: str, rounds: int = 1) -> Table:
    """Each way in a process of its own, one after the other in each round."""
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in TITLES}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_task(place, size)
        for number in range(rounds):
            for way in TITLES:
                found[way].append(_in_process(place, name, way, precision, number))
    rows = []
    for way, title in TITLES.items():
        seconds, cpu, peak = (statistics.median(values) for values in zip(*found[way], strict=True))
        base_seconds, base_cpu, base_peak = (statistics.median(v) for v in zip(*found["trainer"], strict=True))
        shares = f"{base_seconds / seconds:.2f}", f"{base_cpu / cpu:.2f}", f"{peak / base_peak:.2f}"
        rows.append([title, f"{seconds:.0f}", f"{cpu:.0f}", f"{peak:,.0f}", *shares])
    header = ["", "s", "CPU s", "peak MB", "(a) / this: s", "(a) / this: CPU s", "MB: this / (a)"]
    words = "float32" if precision == "no" else "bfloat16"
    note = (
        f"{size.images:,} training images, {size.epochs} epochs, batch 64, one thread: seconds from the start of the process to the "
        f"saved adapter, on the clock and of the processor, and largest resident memory; median of {rounds}. The job races, "
        f"trains the winner and tests it on 50 images.{load()}"
    )
    return Table(f"Whole process, {name}, {words}", header, rows, note, values={"seconds, CPU s, MB": found})


def write_task(folder: Path, size: Size) -> None:
    """The backbone, images as a folder of PNG files, and the same decoded."""
    ViTForImageClassification(size.config).save_pretrained(folder / "backbone")
    everything = make_split(size.config, size.images + 50)
    pixels = everything.__getitems__(range(len(everything)))["pixel_values"]
    for index, (image, label) in enumerate(zip(pixels, everything.labels.tolist(), strict=True)):
        split = "train" if index < size.images else "test"
        place = folder / "images" / split / f"class {label}"
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{index:05}.png")
    labels = everything.labels[: size.images]
    save_file({"pixels": pixels[: size.images].contiguous(), "labels": labels}, folder / "train.safetensors")


def _in_process(folder: Path, name: str, way: str, precision: str, number: int) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and megabytes."""
    output = folder / f"{way} {number}".replace(",", "")
    command = [sys.executable, str(Path(__file__)), str(folder), name, way, precision, str(output)]
    start, before = time.perf_counter(), os.times()
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds, after = time.perf_counter() - start, os.times()
    if result.returncode:
        raise RuntimeError(f"{way} ended with {result.returncode}:\n{result.stderr[-3000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, json.loads(result.stdout.splitlines()[-1])


def load() -> str:
    """How busy the machine is beside this measurement."""
    if not hasattr(os, "getloadavg"):
        return ""
    return " Load averages at its end: " + ", ".join(f"{value:.1f}" for value in os.getloadavg()) + "."


def train_by(way: str, folder: Path, size: Size, precision: str, output: Path) -> None:
    """One of the ways, in this process."""
    if way == "job":
        _run_job(folder, size.epochs, precision, output)
        return
    data = load_file(folder / "train.safetensors")
    if way.startswith("ours"):
        model = make_lora(size.config, all_sites=way == "ours all")
        _train_ours(model, data, size.epochs, precision)
    else:
        model = make_peft_lora(size.config)
        train = _train_by_trainer if way == "trainer" else _train_by_accelerate
        train(model, data, size.epochs, precision, output)
    model.save_pretrained(output)


def _train_by_trainer(model: nn.Module, data: dict, epochs: int, precision: str, output: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        weight_decay=1e-3,
        lr_scheduler_type="cosine",
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    images, labels = data["pixels"], data["labels"]
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    def collate(batch: list[dict]) -> dict:
        pixels = as_floats(torch.stack([row["pixel_values"] for row in batch]))
        return {"pixel_values": pixels, "labels": torch.stack([row["labels"] for row in batch])}

    Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()


def _train_by_accelerate(model: nn.Module, data: dict, epochs: int, precision: str, output: Path) -> None:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(mixed_precision=precision)
    loader = DataLoader(TensorDataset(data["pixels"], data["labels"]), 64, shuffle=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-3)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(model(pixel_values=as_floats(pixels)).logits.float(), labels)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def _train_ours(model: nn.Module, data: dict, epochs: int, precision: str) -> None:
    from peft_noah.data.images import ImageSplit
    from peft_noah.training import TrainingSettings, make_accelerator, train

    settings = TrainingSettings.named("paper", "subnet", epochs=epochs)
    images = ImageSplit(data["pixels"], data["labels"])
    train(model, images, as_floats, settings, make_accelerator(precision))


def _run_job(folder: Path, epochs: int, precision: str, output: Path) -> None:
    from peft_noah.cli import main

    options = {"model": folder / "backbone", "dataset": folder / "images", "epochs": epochs, "output": output}
    options |= {"mixed-precision": precision, "strategy": "race"}
    sys.argv = ["peft-noah", "run", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, name, way, precision, output = sys.argv[1:]
    train_by(way, Path(folder), PEFT_SIZES[name], precision, Path(output))
    print(json.dumps(peak_memory(CPU) / 1e6))
