"""The same on a GPU: a step of supernet training and of fine-tunes, a race's steps, scoring a candidate, fetching a batch.

    python benchmarks/benchmark.py --only gpu
    python benchmarks/section_gpu.py --rehearse    # fine-tunes and race on the CPU, small and captured but not compiled

The floor of a step is the time that the card's own large matrix product would take for the multiplications of forward
pass and activations' gradients in the frozen blocks, as if each token went through all of them once each way:
4 x parameters x tokens floating-point operations per image.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from authors_model import Reference
from measure import (
    SIZES,
    Table,
    check_equal,
    gpu_clock,
    interleave,
    logits_of,
    make_images,
    make_sampled_step,
    make_score,
    make_split,
    make_step,
    make_supernet,
    ratios,
    sample,
    share,
    speed_table,
)
from section_peft import BASE, MODELS
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from peft_noah.architecture import Architecture
from peft_noah.fast import fast_forward
from peft_noah.run.models import add_design
from peft_noah.searching.portfolio import PORTFOLIO

SIZE = "ViT-B/16"
BATCHES = (64, 256)
SCORED = 200
BF16 = torch.bfloat16
NOTE = (
    "{size}; forward, cross-entropy, backward and AdamW of a subnet sampled anew in each of {rounds} rounds from the VTAB-1k "
    "space, recipe 'released', without dropout; the same weights, images and subnets for all, one after the other, each "
    "waited for, once before it counts: cuDNN plans for new lengths of queries and keys. Median; ratio of G's float32 "
    "time (no TF32) to this one's, with quartiles. Floor: {floor:,.0f} images/s, from "
    "{rate:.0f} TFLOP/s of an 8192 x 8192 x 8192 product in bfloat16. {more}"
)


def run(quick: bool) -> Iterator[Table]:
    """Nothing where there is no CUDA device."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured\n")
        return
    rate = _matrix_rate()
    yield _training(rate, 5 if quick else 12)
    yield from adapters(SIZES[SIZE], BATCHES[0], 5 if quick else 20, torch.device("cuda"), rate)
    yield _scoring(5 if quick else 12)
    yield _loading(5 if quick else 50)


def _matrix_rate() -> float:
    """Floating-point operations per second."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=BF16)
    times = interleave({"product": lambda number: a @ b}, 20, 3, gpu_clock)["product"]
    return 2 * 8192**3 / statistics.median(times)


def _training(rate: float, rounds: int) -> Table:
    supernet = make_supernet(SIZES[SIZE]).cuda()
    subnets = sample(supernet, rounds)
    floor = rate / _operations(supernet)
    times, seconds, errors = {}, [], []
    for batch in BATCHES:
        images, labels = (x.cuda() for x in make_images(SIZES[SIZE], batch))
        with ExitStack() as stack:
            plain, fast = share(supernet), share(supernet)
            stack.enter_context(fast_forward(fast))
            reference = Reference(supernet)
            models: dict[str, tuple[nn.Module, torch.dtype | None]] = {
                "G": (reference, None),
                "G in bfloat16": (reference, BF16),
                "transformers' layers, elastic slices, bfloat16": (plain, BF16),
                "fast forward, float32": (fast, None),
                "fast forward, bfloat16": (fast, BF16),
                "compiled, bfloat16": (_compile(share(supernet), stack), BF16),
                "compiled, bfloat16, the backbone's weights too": (_compile(_halved(supernet), stack), BF16),
            }
            errors += _differences(models, subnets[0], images)
            calls = {
                name: make_sampled_step(model, make_step(model, images, labels, dtype), subnets)
                for name, (model, dtype) in models.items()
            }
            start = gpu_clock()
            calls["compiled, bfloat16"](0)
            seconds.append(gpu_clock() - start)
            times[batch] = interleave(calls, rounds, rounds, gpu_clock)
        torch.compiler.reset()
        torch.cuda.empty_cache()
    more = f"Compiling took {' and '.join(f'{s:.0f}' for s in seconds)} s."
    more += f" Logits agree to {max(errors):.0e} of the largest in bfloat16."
    note = NOTE.format(size=SIZE, rounds=rounds, floor=floor, rate=rate / 1e12, more=more)
    return _step_table(times, floor, note)


def _compile(model: nn.Module, stack: ExitStack) -> nn.Module:
    """The model, compiled as training does it; ``stack`` ends what it takes."""
    stack.enter_context(fast_forward(model))
    stack.enter_context(model.base_model.fixed_shapes())
    return _compiled(model, torch.device("cuda"))


def adapters(config: ViTConfig, batch: int, rounds: int, device: torch.device, rate: float) -> Iterator[Table]:
    """A step of fine-tunes, and of all designs of a race, in bfloat16."""
    images, labels = (x.to(device) for x in make_images(config, batch))
    operations = batch * _operations(MODELS[BASE](config))
    clock = gpu_clock if device.type == "cuda" else time.perf_counter
    with ExitStack() as stack:
        calls = {}
        for way, make in MODELS.items():
            for compiled in (False, True):
                model = make(config).to(device)
                subnets = sample(model, rounds) if "supernet" in way else None
                if not way.startswith("PEFT"):
                    stack.enter_context(fast_forward(model))
                if compiled and subnets:
                    stack.enter_context(model.base_model.fixed_shapes())
                model = _compiled(model, device) if compiled else model
                step = make_step(model, images, labels, BF16)
                name = f"{way}, compiled" if compiled else way
                calls[name] = make_sampled_step(model, step, subnets) if subnets else lambda _, step=step: step()
        times = interleave(calls, rounds, rounds, clock)
    yield _rate_table("Fine-tuning step, bfloat16", times, BASE, batch, operations, rate)
    torch.compiler.reset()
    times = _race_times(config, images, labels, rounds, clock)
    first = next(iter(times))
    designs = len(PORTFOLIO[:4])
    yield _rate_table("A step of each of four designs", times, first, designs * batch, designs * operations, rate)
    torch.compiler.reset()


def _compiled(model: nn.Module, device: torch.device) -> nn.Module:
    how = {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": "eager"}  # a rehearsal captures alone
    return torch.compile(model, dynamic=False, fullgraph=True, **how)


def _race_times(config: ViTConfig, images, labels, rounds: int, clock) -> dict[str, list[float]]:
    """Seconds of one step of each design: one after the other, each on a stream of its own, and compiled."""
    device, base = images.device, ViTForImageClassification(config).to(images.device).requires_grad_(False)
    streams = [torch.cuda.Stream() if device.type == "cuda" else None for _ in PORTFOLIO[:4]]
    with ExitStack() as stack:

        def steps(compiled: bool) -> list:
            found = []
            for design in PORTFOLIO[:4]:
                model = add_design(share(base), design, "paper").to(device)
                stack.enter_context(fast_forward(model))
                found.append(make_step(_compiled(model, device) if compiled else model, images, labels, BF16))
            return found

        plain, compiled = steps(False), steps(True)

        def on_streams(number: int) -> None:
            for step, stream in zip(plain, streams, strict=True):
                with torch.cuda.stream(stream):  # without a GPU it does nothing
                    step()

        calls = {
            "one after the other": lambda number: [step() for step in plain],
            "each on a stream of its own": on_streams,
            "one after the other, compiled": lambda number: [step() for step in compiled],
        }
        return interleave(calls, rounds, rounds, clock)


def _rate_table(title: str, times: dict, base: str, images: int, operations: float, rate: float) -> Table:
    rows = []
    for name, seconds in times.items():
        median, low, high = ratios(times, name, base)
        spent = statistics.median(seconds)
        share_of_rate = f"{operations / spent / rate:.0%}"
        rows.append(
            [
                name,
                f"{1e3 * spent:.1f}",
                f"{images / spent:,.0f}",
                share_of_rate,
                f"{median:.2f} ({low:.2f} to {high:.2f})",
            ]
        )
    header = ["", "ms", "images/s", "of the measured rate", f"{base} / this"]
    note = (
        f"Share of {rate / 1e12:.2f} TFLOP/s, the rate of one large product in bfloat16: forward pass and activations' gradients in "
        "the frozen blocks, 4 x parameters x tokens operations an image."
    )
    return Table(title, header, rows, note, values={"seconds": times})


def _halved(model: nn.Module) -> nn.Module:
    """A copy whose frozen weights are bfloat16, as if the backbone had been loaded so."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(BF16)
    return model


def _operations(model: nn.Module) -> float:
    """Of one image, forward and backward through the frozen blocks."""
    base = model.base_model.model
    config = base.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    parameters = sum(p.numel() for p in base.vit.layers.parameters() if not p.requires_grad)
    return 4 * parameters * tokens


def _differences(models: dict, subnet: Architecture, images: torch.Tensor) -> list[float]:
    logits = {}
    for name, (model, dtype) in models.items():
        model = getattr(model, "_orig_mod", model)  # without gradients it would be compiled once more
        model.set_architecture(subnet)
        with torch.no_grad(), torch.autocast("cuda", BF16, enabled=dtype is not None):
            logits[name] = logits_of(model.train(), images)
    return [check_equal(value, logits["G"], name, 0.1) for name, value in logits.items()]


def _step_table(times: dict[int, dict[str, list[float]]], floor: float, note: str) -> Table:
    header = [""]
    for batch in times:
        header += [f"batch {batch}: ms", "images/s", "of the floor", "G / this"]
    rows = []
    for name in next(iter(times.values())):
        row = [name]
        for batch, columns in times.items():
            seconds = statistics.median(columns[name])
            median, low, high = ratios(columns, name, "G")
            row += [f"{1e3 * seconds:.1f}", f"{batch / seconds:,.0f}", f"{batch / seconds / floor:.0%}"]
            row.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    title = "Supernet training step on a GPU"
    return Table(title, header, rows, note, values={"seconds": times, "floor": floor})


def _scoring(rounds: int) -> Table:
    supernet = make_supernet(SIZES[SIZE]).cuda().eval()
    images = make_images(SIZES[SIZE], SCORED)[0].cuda()
    subnets = sample(supernet, rounds)
    fast, reference = share(supernet), Reference(supernet)
    with fast_forward(fast):
        models = {
            "G": (reference, None),
            "G in bfloat16": (reference, BF16),
            "transformers' layers": (supernet, None),
            "fast forward": (fast, None),
            "fast forward, bfloat16": (fast, BF16),
        }
        calls = {name: make_score(model, [images], subnets, dtype) for name, (model, dtype) in models.items()}
        times = interleave(calls, rounds, rounds, gpu_clock)
    note = f"One batch; choosing the subnet and merging it counts; {rounds} rounds, each subnet once before it counts."
    return speed_table("Scoring a candidate on a GPU", {f"{SIZE}, {SCORED} images": times}, note)


def _loading(rounds: int) -> Table:
    split = make_split(SIZES[SIZE], 1000)
    places = {"the host's memory": split, "the GPU's memory": split.on(torch.device("cuda"))}
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[: BATCHES[0]].tolist()

    def fetch(images):
        return lambda number: images.__getitems__(order)["pixel_values"].to("cuda")

    times = interleave({name: fetch(images) for name, images in places.items()}, rounds, 3, gpu_clock)
    rows = [[name, f"{1e3 * statistics.median(seconds):.2f}"] for name, seconds in times.items()]
    note = f"{BATCHES[0]} random ones of 1,000 decoded images of 224 pixels, ready on the GPU; {rounds} rounds."
    return Table("Fetching a batch", ["images in", "ms"], rows, note, values={"seconds": times})


def rehearse(config: ViTConfig, batch: int = 4) -> list[Table]:
    """Fine-tunes and race on the CPU, so that the script is known to run before a GPU is at hand."""
    device, a = torch.device("cpu"), torch.randn(1024, 1024, dtype=BF16)
    seconds = statistics.median(interleave({"product": lambda number: a @ a}, 3, 1)["product"])
    return list(adapters(config, batch, 2, device, 2 * 1024**3 / seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true", required=True, help="on the CPU")
    parser.parse_args()
    torch.set_num_threads(1)
    for result in rehearse(SIZES["small"]):
        print(result.markdown(), flush=True)
