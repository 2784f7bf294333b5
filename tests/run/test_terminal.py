"""A broken display, or a terminal that can only do ASCII, costs no result."""

import io

import pytest
from conftest import make_model
from rich.console import Console
from tiny_runs import SMALL, write_task
from warm_python import WarmPython

from peft_noah.cli.encoding import _spell
from peft_noah.progress import Reporter
from peft_noah.results.report import RunReport

ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def command(encoding, backend, monkeypatch):
    """Runs the command where the terminal can do no more than an encoding, and with no display."""
    for name in ("DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    python = WarmPython(without=["matplotlib.figure"], **encoding)
    yield lambda *words: python.run("-m", "peft_noah", *words, MPLBACKEND=backend)
    python.close()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    make_model().save_pretrained(folder / "vit")
    return ("--model", folder / "vit", "--dataset", write_task(folder / "task"), *SMALL)


@pytest.mark.parametrize(
    ("encoding", "backend"),
    [(ASCII, "TkAgg"), (C_LOCALE, "module://matplotlib_inline.backend_inline_that_is_missing")],
    ids=["ascii", "C"],
)
def test_a_whole_run_ends_with_its_results(command, job, tmp_path):
    done = command("run", "--strategy", "noah", *job, "--baselines", "linear", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(RunReport.load(tmp_path / "run" / "results.json").results) == 4
    assert "linear" in done.stdout and done.stdout.isascii()
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {"architecture.png", "search.png"}
    assert "±" in (tmp_path / "run" / "results.md").read_text(encoding="utf-8")
    assert "±" in (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    done = command("evaluate", tmp_path / "run" / "adapter", "--dataset", job[3])
    assert done.returncode == 0 and " % +/- " in done.stdout, done


def test_letters_that_an_encoding_lacks_are_spelled():
    error = UnicodeEncodeError("ascii", "1 ± 2 ─ é", 2, 3, "")
    assert _spell(error) == ("+/-", 3)
    assert _spell(UnicodeEncodeError("ascii", "─", 0, 1, "")) == ("-", 1)
    assert _spell(UnicodeEncodeError("ascii", "é", 0, 1, "")) == ("\\xe9", 1)


def test_one_step_is_one_step():
    written = io.StringIO()
    with Reporter(Console(file=written)).stage("lora") as update:
        update(1, 1, "loss 1.000")
    assert "lora: 1 step in" in written.getvalue()
