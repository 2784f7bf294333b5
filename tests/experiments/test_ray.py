"""Suites on the real Ray: several nodes on this machine, which die; skipped where Ray is not installed."""

import json
import subprocess
import sys
import time

import pytest
from clusters import assert_same_runs, ray_nodes
from conftest import make_model
from test_suite import SMALL, stamps
from tiny_runs import invoke, write_task

from peft_noah.run.cluster import Pool

pytest.importorskip("ray")


def start_and_kill(command, folder):
    """Start a suite as a process of its own, and kill it when its first result is there."""
    process = subprocess.Popen([sys.executable, "-m", "peft_noah", *map(str, command)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not stamps(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    return process.communicate()[1].decode()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Six cells on two nodes of one CPU: the driver is killed, then a node that works for the next driver; two cells cannot be."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "tasks").mkdir()
    for name in ("blue", "red"):
        write_task(folder / "tasks" / name, train=6, validation=6, test=6)
    make_model().save_pretrained(folder / "vit")
    (folder / "short.json").write_text(json.dumps({"lora": [1]}))  # the backbone has more blocks
    suite = ["suite", folder / "tasks", "--model", folder / "vit", *SMALL, "--methods", "lora,noah-retrained"]
    suite += ["--architecture", folder / "short.json"]
    plain = invoke(*suite, "--output", folder / "plain")
    with ray_nodes(2) as (address, kill_node), pytest.MonkeyPatch.context() as patch:
        on_ray = [*suite, "--output", folder / "spread", "--ray", address]
        said = start_and_kill(on_ray, folder / "spread")
        before, events = stamps(folder / "spread"), []
        refused = invoke(*on_ray, "--gpus-per-cell", 1)
        nobody = invoke(*on_ray, "--ray", "127.0.0.1:1")

        def next_event(pool, wait=Pool.next):
            event = wait(pool)
            if not events:
                kill_node(event.node)
            events.append(event)
            return event

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
