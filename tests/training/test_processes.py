"""Several processes, started by the launchers that a user types, give the results of one."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from launched_training import (
    CASES,
    DESIGNS,
    RACE,
    SETTINGS,
    fit,
    loss_of_five_texts,
    make_images,
    make_supernet,
    normalize,
    tiny_run,
)
from safetensors.torch import load_file
from tiny_runs import SMALL, invoke, write_task

from peft_noah.run.race import run_race
from peft_noah.searching.result import SearchResult
from peft_noah.training import ArchitectureSampler, TrainingSettings
from peft_noah.training.batches import Shares
from peft_noah.training.processes import make_accelerator, total

HERE = Path(__file__).parents[1]
#: the order of sums differs, and AdamW divides by gradients that may be small
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def launch(python):
    """Starts a launcher's module; the processes that it starts are no forks."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    return lambda *command: python.start("-m", *command, OMP_NUM_THREADS="1", PYTHONPATH=path)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def two_nodes(launch, tmp_path_factory):
    """What `launched_training.py` leaves on two machines of one process each, which here are two launchers."""
    folder, port = tmp_path_factory.mktemp("two-nodes"), free_port()
    write_task(folder / "task")
    make_model().save_pretrained(folder / "vit")
    where = ("--nnodes", 2, "--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", port)
    nodes = [
        launch("torch.distributed.run", *where, "--node_rank", rank, HERE / "launched_training.py", folder)
        for rank in (0, 1)
    ]
    ended = [node.wait() for node in nodes]
    assert [node.returncode for node in ended] == [0, 0], ended
    return folder


@pytest.mark.parametrize("case", [case for case in CASES if case != "per-process"])
def test_two_machines_train_what_one_process_trains(case, two_nodes):
    expected = fit(make_accelerator(), **{**CASES[case], "compiled": False})
    for process in (0, 1):
        torch.testing.assert_close(load_file(two_nodes / f"{case}-{process}.safetensors"), expected, **TOLERANCE)


def test_processes_share_texts_and_have_one_loss_per_token(two_nodes):
    expected = loss_of_five_texts(make_accelerator())
    for process in (0, 1):
        torch.testing.assert_close(load_file(two_nodes / f"token loss-{process}.safetensors")["loss"], expected)


def test_processes_stop_together_and_go_on_where_they_were(two_nodes):
    expected = load_file(two_nodes / "plain-0.safetensors")
    expected["losses"] = expected["losses"][4:]
    for process in (0, 1):
        found = load_file(two_nodes / f"interrupted-{process}.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def one_thread():
    """As many as the processes of a launcher have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_processes_run_whole_heats_of_a_race_each_and_leave_the_bytes_of_one(two_nodes, one_thread, tmp_path):
    run_race(tiny_run(two_nodes, tmp_path / "one"), DESIGNS, RACE)
    names = ["race.json", *(f"race/{path.name}" for path in (tmp_path / "one" / "race").iterdir())]
    assert len(names) == 1 + 2 * 3
    for name in names:
        assert (two_nodes / "race" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert not list((two_nodes / "race").glob("checkpoints/*"))


def test_what_fails_in_one_process_ends_the_others_with_its_reason(two_nodes):
    first, second = (json.loads((two_nodes / f"said-{process}.json").read_text()) for process in (0, 1))
    others = "ValueError: process {} of 2 has failed, and the others stop with it. "
    heat, full = "ValueError: this heat cannot be", "OSError: no space left"
    lost = second.pop(1)  # the folder of the data is not there
    assert "nowhere" in lost and first.pop(1) == others.format(1) + lost
    assert first == [others.format(1) + heat, full, full]
    assert second == [heat, others.format(0) + full, others.format(0) + full]
    assert not (two_nodes / "lost").exists()


def test_processes_with_subnets_of_their_own_average_their_gradients(two_nodes):
    model = make_supernet()
    sampler = ArchitectureSampler(model.get_search_space(), seed=3)
    images, settings = make_images(), TrainingSettings(**SETTINGS)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=settings.weight_decay)
    batches = [rows for epoch in range(settings.epochs) for rows in Shares(33, 16, settings.seed).start_at(epoch, 0)]
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = settings.rate_at(step, 3)
        for process in (0, 1):
            model.set_architecture(sampler(2 * step + process))
            share = rows[len(rows) * process // 2 : len(rows) * (process + 1) // 2]
            if not share:
                continue
            mine = images.__getitems__(share)
            logits = model(pixel_values=normalize(mine["pixel_values"])).logits
            (F.cross_entropy(logits, mine["labels"], reduction="sum") / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for process in (0, 1):
        found = load_file(two_nodes / f"per-process-{process}.safetensors")
        torch.testing.assert_close({name: found[name] for name in weights}, dict(weights), **TOLERANCE)


def test_the_documented_command_does_the_whole_job_of_one_process(launch, one_thread, tmp_path):
    task = write_task(tmp_path / "task")
    make_model().save_pretrained(tmp_path / "vit")
    job = ("--model", tmp_path / "vit", "--dataset", task, *SMALL, "--baselines", "none")
    job = ("run", "--strategy", "noah", *job, "--output")
    command = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", free_port())
    options = ("--mixed_precision", "no", "--num_machines", 1, "--dynamo_backend", "no")
    two = launch(*command, *options, "-m", "peft_noah", *job, tmp_path / "two")
    one = invoke(*job, tmp_path / "one")
    ended = two.wait()
    assert (ended.returncode, one.exit_code) == (0, 0), ended.stderr + one.output
    found = [SearchResult.load(tmp_path / name / "search.json").candidates for name in ("one", "two")]
    assert found[0] == found[1]
    for name in ("supernet", "adapter", "adapter-inherited", "adapter-continued"):
        one, both = (load_file(tmp_path / n / name / "adapter_model.safetensors") for n in ("one", "two"))
        torch.testing.assert_close(both, one, **TOLERANCE)


def test_a_launcher_whose_processes_do_not_meet_is_an_error(monkeypatch):
    make_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # Accelerate makes no CPU group then
    with pytest.raises(ValueError, match="a launcher started 2 processes, but this one sees 1"):
        make_accelerator()


def test_the_total_over_one_process_is_the_value_itself():
    assert total(make_accelerator(), 0.1, True) == [0.1, True]


@pytest.mark.parametrize("what", ["suite", "ranking"])
def test_what_is_shared_by_starting_it_several_times_refuses_a_launcher(what, monkeypatch, tmp_path):
    from peft_noah.experiments.plan import Plan
    from peft_noah.experiments.ranking import rank_architectures
    from peft_noah.experiments.suite import Suite

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"a {what} runs in one process, and a launcher started 2"):
        if what == "ranking":
            rank_architectures(None, 5)
        else:
            monkeypatch.setattr(Suite, "_agree", lambda self, plan: plan)
            Suite(tmp_path / "suite", object.__new__(Plan)).run()
    assert not list(tmp_path.iterdir())
