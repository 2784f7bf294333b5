"""Suites on the real Ray: several nodes on this machine, which die; skipped where Ray is not installed."""

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from clusters import RayNodes, assert_same_runs
from conftest import make_model
from test_suite import SMALL, stamps
from tiny_runs import invoke, write_task

from peft_noah.run import cluster
from peft_noah.run.cluster import Cluster, Pool
from peft_noah.training import interruption

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes():
    with closing(RayNodes()) as nodes:
        yield nodes


def start_and_kill(python, command, folder):
    """Start a suite as a process of its own, and kill it when its first result is there."""
    process = python.start("-m", "peft_noah", *command)
    deadline = time.monotonic() + 300
    while not stamps(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    return process.wait().stderr


@pytest.fixture(scope="module")
def story(python, nodes, tmp_path_factory):
    """Six cells on nodes of one CPU: the driver is killed, then one of two nodes of the next driver; two cells cannot be."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "tasks").mkdir()
    for name in ("blue", "red"):
        write_task(folder / "tasks" / name, train=6, validation=6, test=6)
    make_model().save_pretrained(folder / "vit")
    (folder / "short.json").write_text(json.dumps({"lora": [1]}))  # the backbone has more blocks
    suite = ["suite", folder / "tasks", "--model", folder / "vit", *SMALL, "--methods", "lora,noah-retrained"]
    suite += ["--architecture", folder / "short.json"]
    plain = invoke(*suite, "--output", folder / "plain")
    on_ray = [*suite, "--output", folder / "spread", "--ray", nodes.address]
    nodes.add()
    said = start_and_kill(python, on_ray, folder / "spread")
    before, events = stamps(folder / "spread"), []
    nodes.add()
    refused = invoke(*on_ray, "--gpus-per-cell", 1)
    nobody = invoke(*on_ray, "--ray", "127.0.0.1:1")

    def next_event(pool, wait=Pool.next):
        event = wait(pool)
        if not events:
            nodes.kill(event.node)
        events.append(event)
        return event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "next", next_event)
        result = invoke(*on_ray)
    return {
        "folder": folder,
        "plain": plain,
        "said": said,
        "before": before,
        "refused": refused,
        "nobody": nobody,
        "events": events,
        "result": result,
    }


def test_a_killed_node_and_a_killed_driver_leave_the_files_of_a_suite_without_ray(story):
    folder, begun, ended = story["folder"], [], []
    assert "4 of 6 cells done, 2 failed" in story["result"].output, story["result"].output
    for event in story["events"]:
        (ended if event.node is None else begun).append(event.key)
    assert begun[0] in ended  # on the node that is left
    assert_same_runs(folder / "spread", folder / "plain")
    assert_same_runs(folder / "plain", folder / "spread")


def test_a_driver_that_is_started_again_repeats_no_finished_cell(story):
    assert story["before"], story["said"]
    assert story["before"].items() <= stamps(story["folder"] / "spread").items()


def test_a_cell_that_raises_on_a_node_ends_no_other_and_says_the_same_with_its_traceback(story):
    assert story["plain"].exit_code == story["result"].exit_code == 1
    spread, plain = (
        json.loads((story["folder"] / how / "red/seed0/results/transfer-short.error.json").read_text())
        for how in ("spread", "plain")
    )
    assert spread["error"] == plain["error"] and "in do_piece" in spread["traceback"]


def test_a_progress_line_of_a_node_reaches_the_terminal(story):
    assert "lora, on train" in story["said"], story["said"]


def test_a_cell_that_no_node_is_large_enough_for_is_refused(story):
    assert story["refused"].exit_code == 2
    assert "1 CPUs and 1 GPUs, and no node of the Ray cluster has as many" in story["refused"].output


def test_an_address_where_nothing_listens_is_refused_at_once(story):
    assert story["nobody"].exit_code == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in story["nobody"].output


@pytest.fixture
def light(monkeypatch):
    """Nodes get the code of a pool itself, not the name of a module that imports torch: a process for each GPU would."""
    from ray import cloudpickle

    monkeypatch.setattr(cluster, "quiet", lambda: None)
    for module in (cluster, interruption):
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in (cluster, interruption):
        cloudpickle.unregister_pickle_by_value(module)


def test_each_cell_has_a_gpu_of_its_own_and_more_cells_than_gpus_wait(story, nodes, light, tmp_path):
    def gpu(folder):
        began = time.time()
        (Path(folder) / f"{began}").touch()
        while len(os.listdir(folder)) < 2:  # until another is at work
            time.sleep(0.05)
        time.sleep(0.3)
        return os.environ["CUDA_VISIBLE_DEVICES"], began, time.time()

    nodes.add(cpus=4, gpus=2)
    with Cluster(nodes.address).connected() as pool:
        first, second, third = sorted(pool.map(gpu, [str(tmp_path)] * 3), key=lambda cell: cell[1])
    assert {first[0], second[0]} == {"0", "1"} and second[1] < first[2]
    assert third[0] in {"0", "1"} and third[1] > min(first[2], second[2])
