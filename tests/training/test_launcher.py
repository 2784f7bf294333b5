"""What `accelerate launch`, its config file or Accelerate's environment say counts, unless an option was given."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands import launch as launcher
from accelerate.state import AcceleratorState
from conftest import make_model
from tiny_runs import SMALL, write_task

from peft_noah.run.context import RunContext
from peft_noah.run.settings import RunSettings
from peft_noah.training.processes import OFF, is_compiling, make_accelerator

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerators of a process share their state, and it remembers the first one's precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    make_model().save_pretrained(folder / "vit")
    return ("--model", folder / "vit", "--dataset", write_task(folder / "task"), *SMALL)


def launch_from_a_shell(options, *command):
    """What `accelerate launch` with these options prints of a command."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", *options, "-m", "peft_noah", *command]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(word) for word in words], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def launch(python, monkeypatch):
    """The same, by Accelerate's function in this process; the process that it starts is warm."""
    ended = []

    def start(command, env):
        ended.append(python.run(*command[1:], **env))
        return SimpleNamespace(wait=lambda: None, returncode=ended[-1].returncode)

    def launch(options, *command):
        words = map(str, ("--cpu", *options, "-m", "peft_noah", *command))
        with monkeypatch.context() as patch:
            patch.setattr(launcher.subprocess, "Popen", start)
            launcher.launch_command(launcher.launch_command_parser().parse_args([*words]))
        return " ".join((ended[-1].stdout + ended[-1].stderr).split())

    return launch


def stored(folder):
    return json.loads((folder / "settings.json").read_text())


def test_the_launchers_precision_is_used_printed_and_stored_for_all_stages(job, launch, tmp_path):
    said = launch_from_a_shell(("--mixed_precision", "bf16"), "supernet", *job, "--output", tmp_path / "run")
    assert "mixed precision bf16" in said and stored(tmp_path / "run")["mixed_precision"] == "bf16"
    said = launch(("--mixed_precision", "no"), "baseline", tmp_path / "run", "--method", "linear")
    assert "mixed precision bf16" in said
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["settings"]["mixed_precision"] == "bf16"


def test_the_config_files_precision_is_used_where_none_is_given(job, launch, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n"
    )
    said = launch(("--config_file", config), "supernet", *job, "--output", tmp_path / "run")
    assert "mixed precision bf16" in said and stored(tmp_path / "run")["mixed_precision"] == "bf16"


def test_an_option_goes_before_the_launcher(job, launch, tmp_path):
    options = ("--mixed-precision", "no", "--output", tmp_path / "run")
    said = launch(("--mixed_precision", "bf16"), "supernet", *job, *options)
    assert "mixed precision no" in said and "the launcher's 'bf16' is not used" in said
    assert stored(tmp_path / "run")["mixed_precision"] == "no"


@pytest.mark.parametrize(("word", "found"), [(None, "no"), ("bf16", "bf16"), ("no", "no")])
def test_the_environment_counts_too(word, found, monkeypatch, tmp_path):
    if word is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
    context = RunContext(tmp_path / "run", RunSettings())
    assert context.accelerator.mixed_precision == context.settings.mixed_precision == found


def test_a_precision_that_no_run_computes_in_is_refused(monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.mixed_precision", "fp8")
    with pytest.raises(ValueError, match="asks for mixed precision 'fp8'; allowed are no, fp16, bf16"):
        make_accelerator()


def test_micro_batches_of_the_environment_count_and_do_not_shrink_the_gradients(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    context = RunContext(tmp_path / "run", RunSettings())
    assert context.settings.training("subnet").accumulate == 3
    assert context.accelerator.gradient_accumulation_steps == 1  # by which Accelerate would divide every loss
    assert RunContext(tmp_path / "run", RunSettings(accumulate=2)).settings.accumulate == 2
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "0")
    with pytest.raises(
        ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be a whole number of at least 1"
    ):
        RunContext(tmp_path / "run", RunSettings())


@pytest.mark.parametrize(("option", "compiles"), [(None, True), (False, False), (True, True)])
def test_the_launchers_compiler_is_used_unless_an_option_says_otherwise(option, compiles, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert is_compiling(RunContext(tmp_path / "run", RunSettings(compile=option)).accelerator) == compiles
    assert not is_compiling(make_accelerator(compile_mode=OFF))


def test_what_was_left_to_the_launcher_differs_from_nothing():
    left, given = RunSettings(), RunSettings(mixed_precision="bf16", accumulate=2, compile=True)
    assert left.differences(given) == given.differences(left) == []
    other = RunSettings(mixed_precision="no", accumulate=1, compile=False, seed=3)
    assert given.differences(other) == ["seed", "mixed_precision", "compile", "accumulate"]
