"""Accuracy is the share of right predictions, without the network or a cache."""

from __future__ import annotations

import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch

from peft_noah.training.metrics import Accuracy


def test_accuracy_is_the_share_of_right_predictions():
    assert Accuracy().compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0]) == {"accuracy": 0.75}


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_batches_of_tensors_arrays_or_lists_add_up(convert):
    metric = Accuracy()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=convert([0, 1]), references=convert([0, 1]))
    metric.add_batch(predictions=convert([2]), references=convert([1]))
    assert metric.compute() == {"accuracy": 2 / 3}


def test_a_metric_starts_anew_after_each_result():
    metric = Accuracy()
    assert metric.compute(predictions=[1, 1], references=[0, 1]) == {"accuracy": 0.5}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_several_metrics_can_count_side_by_side():
    first, second = Accuracy(), Accuracy()
    first.add_batch(predictions=[1], references=[1])
    second.add_batch(predictions=[1], references=[0])
    assert (first.compute(), second.compute()) == ({"accuracy": 1.0}, {"accuracy": 0.0})


def test_no_predictions_are_refused():
    with pytest.raises(ValueError, match="the accuracy of no images is not defined"):
        Accuracy().compute(predictions=[], references=[])


def test_predictions_and_references_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        Accuracy().compute(predictions=[1, 2], references=[1])


def test_accuracy_needs_no_network_and_no_home_and_leaves_no_file(tmp_path):
    script = (
        "import socket, sys\n"
        "def refuse(*_): sys.exit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from peft_noah.training.metrics import Accuracy\n"
        "metric = Accuracy()\n"
        "metric.add_batch(predictions=[1], references=[1])\n"
        "print(metric.compute())\n"
    )
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")  # below a file, so it can neither exist nor be created, even by root
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "HF_HOME": home, "HOME": home, "TMPDIR": str(tmp_path / "tmp")}
    for name in ("HF_METRICS_CACHE", "HF_EVALUATE_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "{'accuracy': 1.0}\n"), done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
