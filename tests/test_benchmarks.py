"""The benchmark: what it compares with is the same model, and its report is what its numbers say."""

import importlib.util
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import SIZES, make_model
from tiny_runs import write_task
from transformers import ViTConfig

from peft_noah import Architecture, SearchSpace

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A file of the benchmark by name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(FOLDER / "ladder")
    yield load
    sys.modules.pop("measure", None)


def test_the_reference_is_the_same_model(benchmark):
    measure, reference = benchmark("measure"), benchmark("authors_model")
    model = measure.make_supernet(ViTConfig(**SIZES, num_labels=5)).double().eval()
    plain = reference.Reference(model).double().eval()
    images, labels = measure.make_images(ViTConfig(**SIZES, num_labels=5), 3)
    space = model.get_search_space()
    for seed in range(4):
        architecture = space.sample(random.Random(seed))
        for each in (model, plain):
            each.set_architecture(architecture)
        with torch.no_grad():
            expected = measure.logits_of(model, images.double())
            measure.check_equal(measure.logits_of(plain, images.double()), expected, "G", tolerance=1e-9)
    with pytest.raises(ValueError, match="logits differ"):
        measure.check_equal(expected + 1, expected, "G")


def test_pefts_lora_and_ours_train_the_same_weights_and_start_alike(benchmark):
    benchmark("measure")
    section, config = benchmark("section_peft"), ViTConfig(**SIZES, num_labels=5)
    pixels = torch.randn(2, 3, 16, 16)
    for all_sites in (False, True):
        models = [make(config, all_sites=all_sites) for make in (section.make_peft_lora, section.make_lora)]
        counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models]
        assert counts[0] == counts[1]
        logits = [model.eval()(pixel_values=pixels).logits.detach() for model in models]
        torch.testing.assert_close(*logits)


def test_the_gpus_script_is_rehearsed_on_a_cpu(benchmark, monkeypatch):
    benchmark("measure"), benchmark("authors_model")
    monkeypatch.setattr(torch, "compile", lambda model, **how: model)  # to capture takes half a minute
    fine_tunes, race = benchmark("section_gpu").rehearse(ViTConfig(**SIZES, num_labels=5), batch=2)
    assert len(fine_tunes.rows) == 10 and len(race.rows) == 3


def test_the_committed_report_is_that_of_its_numbers(benchmark):
    report = benchmark("benchmark").markdown(json.loads((FOLDER / "results.json").read_text()))
    assert (FOLDER / "results.md").read_text() == report


def test_a_section_runs_and_joins_the_report(benchmark, python, tmp_path, monkeypatch):
    benchmark("measure")
    section, main = benchmark("section_startup"), benchmark("benchmark")

    def said(command):
        done = python.run(*command[1:])
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(section, "_output", said)
    monkeypatch.setitem(sys.modules, "section_startup", section)
    monkeypatch.setattr(main, "_use_one_core", lambda: None)  # this process would stay there
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    options = ["--quick", "--only", "startup", "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, options)])
    main.main()
    found = json.loads((tmp_path / "results.json").read_text())
    assert found.keys() == {"startup"} and "peft-noah --help" in (tmp_path / "results.md").read_text()


def test_cells_of_the_ladder_are_trained_once_and_reported(benchmark, tmp_path, monkeypatch):
    ladder = benchmark("ladder/ladder")
    make_model().save_pretrained(tmp_path / "vit")
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks" / "red", train=24)
    rungs, results = ("qk r8 s1", "all r2 s4 head", "all r2 s4 by norm"), tmp_path / "results.jsonl"
    monkeypatch.setattr(ladder, "PARTS", (ladder.Part("tiny", 10, (0,), rungs),))
    for rung in rungs:
        monkeypatch.setitem(ladder.RUNGS, rung, replace(ladder.RUNGS[rung], training={"batch_size": 8}))
    typed = {"tasks": tmp_path / "tasks", "model": [f"tiny={tmp_path / 'vit'}"], "locks": tmp_path / "locks"}
    AcceleratorState._reset_state()  # the precision of a process is fixed by its first accelerator
    for _ in range(2):
        ladder.run(SimpleNamespace(results=results, **typed))
    AcceleratorState._reset_state()
    cells = ladder.done(results)
    assert [cell["rung"] for cell in cells] == list(rungs)
    assert [cell["parameters"] for cell in cells] == [4 * 2 * 8 * 48, *[4 * 2 * (4 * 48 + 2 * 72)] * 2]
    assert [cell["image_passes"] for cell in cells] == [300, 310, 300] and "ridge" in cells[1]["head"]
    monkeypatch.setattr(ladder, "TABLE", tmp_path / "ladder.md")
    monkeypatch.setattr(ladder, "PLOT", tmp_path / "ladder.png")
    ladder.report(SimpleNamespace(results=results))
    assert "all r2 s4 head" in (tmp_path / "ladder.md").read_text() and (tmp_path / "ladder.png").exists()


def test_what_narrows_draws_only_what_the_best_have_and_ends_with_one(benchmark):
    searched = benchmark("ladder/searched")
    space, rng = SearchSpace.wide(3), random.Random(0)
    whole = searched.Choices.all_of(space)
    assert [whole.draw(random.Random(seed)) for seed in range(9)] == [space.sample(random.Random(s)) for s in range(9)]
    best = searched.draw_candidates(whole, 3, lambda a: sum(map(sum, a.values())), 30, rng)
    assert len(set(best)) == 3 and all(sum(map(sum, a.values())) <= 30 for a in best)
    left = searched.Choices.of(space, best)
    for drawn in (left.draw(rng) for _ in range(50)):
        assert drawn in space
        for row, dims in drawn.items():
            assert any(bool(any(dims)) == bool(any(a[row])) for a in best)
            assert all(dim in {a[row][block] for a in best} for block, dim in enumerate(dims) if dim)
    assert searched.Choices.of(space, best[:1]).draw(rng) == best[0]


def test_rungs_that_search_cost_what_their_plans_say(benchmark, tmp_path, monkeypatch):
    searched = benchmark("ladder/searched")
    monkeypatch.setitem(sys.modules, "searched", searched)
    ladder = benchmark("ladder/ladder")
    make_model().save_pretrained(tmp_path / "vit")
    write_task(tmp_path / "red", train=24)
    monkeypatch.setattr(searched, "POPULATION", 3)
    AcceleratorState._reset_state()
    for name in ("noah wide s16", "narrow wide s16"):
        monkeypatch.setitem(searched.SEARCHED, name, replace(searched.SEARCHED[name], supernet=16, continued=1))
        cell = {"backbone": "tiny", "epochs": 20, "rung": name, "task": "red", "seed": 0}
        row = ladder.train_cell(cell, str(tmp_path / "vit"), tmp_path / "red")
        assert row["image_passes"] == 16 * 24 + 9 * 6 // 2 + 30 and 0 < row["scored"] <= 9 * 6
        assert row["parameters"] > 0 and Architecture(row["architecture"]).num_blocks == 4
    AcceleratorState._reset_state()
