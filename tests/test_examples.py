"""Every file in examples/ runs, at a size that takes seconds."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model
from datasets import ClassLabel, Dataset, Features, Image
from image_files import bundle_few
from text_models import write_text_model, write_texts

EXAMPLES = Path(__file__).parent.parent / "examples"


def pretraining_data(folder):
    random = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    images = [random.integers(0, 256, (20, 24, 3)).astype(np.uint8) for _ in range(6)]
    for name in ("train", "validation"):
        table = {"image": images, "label": [0, 1, 2, 0, 1, 2]}
        Dataset.from_dict(table, features).to_parquet(folder / f"{name}.parquet")
    make_model().save_pretrained(folder / "teacher")
    return ["--data", folder, "--teacher", folder / "teacher", "--steps", "2", "--batch-size", "4", "--views", "2"]


def small_suite(folder):
    pretraining_data(folder / "tasks" / "one")
    (folder / "tasks" / "one" / "train.parquet").rename(folder / "tasks" / "one" / "test.parquet")
    pretraining_data(folder / "tasks" / "one")
    make_model().save_pretrained(folder / "vit")
    options = ["--efforts", "1.5", "--lora-efforts", "1,2", "--epochs", "1", "--seeds", "0", "--population-size", "4"]
    return [folder / "tasks", "--model", folder / "vit", *options, "--output", folder / "out"]


def small_texts(folder):
    options = ["--epochs", "1", "--generations", "1", "--output", folder / "out"]
    return ["--model", write_text_model(folder / "bert"), "--dataset", write_texts(folder / "texts"), *options]


ARGUMENTS = {
    "add_backbone.py": lambda folder: [],
    "add_prompt_module.py": lambda folder: [],
    "effort.py": small_suite,
    "fault_drill.py": lambda folder: ["--kills", "3", "--others", "0"],
    "pretrain_backbone.py": lambda folder: [*pretraining_data(folder), "--output", folder / "out"],
    "quickstart.py": lambda folder: ["--epochs", "1", "--generations", "1", "--output", folder / "out"],
    "text.py": small_texts,
    "with_trainer.py": lambda folder: ["--epochs", "0.1", "--output", folder / "out"],
}


def test_no_example_is_left_out():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(ARGUMENTS)


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "effort.py"])
def test_example_runs(name, python, tmp_path):
    words = [EXAMPLES / name, *ARGUMENTS[name](tmp_path)]
    if name == "quickstart.py":
        run_it = f"import runpy\nrunpy.run_path({str(words[0])!r}, run_name='__main__')"
        words[:1] = ["-c", bundle_few(tmp_path / "task") + run_it]
    result = python.run(*words, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    if "--output" in words:
        assert any(path.suffix == ".safetensors" for path in (tmp_path / "out").iterdir())


def test_the_example_of_efforts_runs_its_suites_and_writes_the_table(python, tmp_path, monkeypatch):
    def run(command, check):
        done = python.run(*command[1:])
        assert check and done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", [str(word) for word in ("effort.py", *ARGUMENTS["effort.py"](tmp_path))])
    runpy.run_path(str(EXAMPLES / "effort.py"), run_name="__main__")
    assert (tmp_path / "out" / "effort.md").exists()
