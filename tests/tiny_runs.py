"""The command line on datasets and trainings so small that a whole run takes seconds."""

import re

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from typer.testing import CliRunner

from peft_noah.cli import app

#: options of a run of strategy noah
SMALL = ["--epochs", "1", "--supernet-epochs", "1", "--population-size", "4", "--generations", "2"]


def rows(number, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = [i % classes for i in range(number)]
    images = [(random.integers(0, 60, (16, 16, 3)) + 80 * label).astype(np.uint8) for label in labels]
    return {"image": images, "label": labels}


def write_task(folder, classes=3, **splits):
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {c}" for c in range(classes)])})
    folder.mkdir()
    for seed, (name, number) in enumerate({"train": 12, "validation": 6, "test": 9, **splits}.items()):
        if number:
            Dataset.from_dict(rows(number, classes, seed), features).to_parquet(folder / f"{name}.parquet")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments, folder, message):
    """The command ends in one sentence and with exit code 2, and nothing is written."""
    result = invoke(*arguments, "--output", folder)
    assert result.exit_code == 2, result.output
    assert re.search(message, " ".join(result.output.split())), result.output
    assert "Traceback" not in result.output
    assert not folder.exists()
