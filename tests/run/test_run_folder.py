"""The files of a run folder: one file a result, errors beside them, locks that end with their process."""

import os
import signal
import time

import pytest

from peft_noah.jsonfile import read_json
from peft_noah.results.report import MethodResult, RunReport
from peft_noah.run.folder import Busy, RunFolder
from peft_noah.run.names import slug
from peft_noah.run.settings import RunSettings


def result(method, test=0.5, **more):
    return MethodResult(method, 0, 10, 5, 0.5, test, 20, 40, 1.0, **more)


@pytest.fixture
def files(tmp_path):
    return RunFolder(tmp_path / "run")


def test_methods_have_names_that_files_can_have():
    assert slug("noah retrained") == "noah-retrained"
    assert slug("transfer vtab/cifar100") == "transfer-vtab-cifar100"
    assert slug("transfer ../../etc/passwd") == "transfer-etc-passwd"


def test_each_result_is_a_file_and_the_table_has_them_all_in_the_papers_order(files):
    files.add(RunReport([result("noah retrained")], architecture={"lora": [1, 2]}, notes=["a"]))
    files.add(RunReport([result("transfer a")], architecture={"lora": [3, 3]}))
    files.add(RunReport([result("linear")], notes=["a", "b"]))
    assert sorted(path.name for path in (files / "results").iterdir()) == [
        "linear.json",
        "noah-retrained.json",
        "transfer-a.json",
    ]
    table = RunReport.load(files.path)
    assert [line.method for line in table.results] == ["linear", "noah retrained", "transfer a"]
    assert table.architecture == {"lora": [1, 2]} and table.notes == ["a", "b"]
    assert files.result("linear") == result("linear") and files.result("lora") is None


def test_an_error_is_kept_with_its_traceback_until_the_method_succeeds(files):
    try:
        raise RuntimeError("no memory")
    except RuntimeError as error:
        files.add_error("lora", error)
    assert "test_run_folder.py" in read_json(files.error_path("lora"))["traceback"]
    files.add_error("lora", RuntimeError("no memory " * 10_000))
    assert files.error("lora").startswith("RuntimeError: no memory") and len(files.error("lora")) <= 10_000
    assert files.error("vpt") is None
    files.add(RunReport([result("lora")]))
    assert files.error("lora") is None
    assert [line.method for line in files.report().results] == ["lora"]


def test_a_result_cut_short_is_named(files):
    files.add(RunReport([result("lora")]))
    path = files.result_path("lora")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"lora\.json is not valid JSON.*cut short"):
        files.report()


def test_a_folder_without_results_says_so(files):
    with pytest.raises(ValueError, match="holds no results yet"):
        files.report()


def test_a_lock_keeps_others_out_until_it_is_given_back(files):
    with files.lock("lora"):
        assert files.locked("lora") and not files.locked("vpt")
        with pytest.raises(Busy, match="another process is at work on 'lora'"), files.lock("lora"):
            pass
    assert not files.locked("lora")


def test_a_killed_process_gives_its_lock_back(files, python):
    code = """
import sys, time
from peft_noah.run.folder import RunFolder
with RunFolder(sys.argv[1]).lock("lora"):
    time.sleep(60)
"""
    process = python.start("-c", code, files.path)
    deadline = time.monotonic() + 60
    while not files.locked("lora") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files.locked("lora")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while files.locked("lora") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not files.locked("lora")


def test_a_folder_that_only_holds_locks_can_become_a_run(files):
    with files.lock("linear"):
        pass
    assert files.agree(RunSettings(epochs=1)).epochs == 1
    with pytest.raises(ValueError, match="holds no run: settings.json is missing"):
        files.agree(None)


def test_an_adapter_folder_appears_only_when_it_is_whole(files):
    files.path.mkdir()

    def fail(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_adapter("adapter", fail)
    assert not (files / "adapter").exists()
    files.write_adapter("adapter", lambda folder: folder.mkdir())
    assert (files / "adapter").is_dir() and not any((files / "adapter").iterdir())


def test_times_are_kept_by_stage(files):
    files.path.mkdir()
    files.note_stage("supernet", 3.0, 2 * 10**9)
    files.note_stage("search", 4.0, 10**9)
    assert (files.seconds("supernet"), files.seconds("search")) == (3.0, 4.0)
    assert files.peak_memory("supernet") == 2 * 10**9
    with pytest.raises(ValueError, match="does not say how long the retraining took"):
        files.seconds("retraining")


def test_a_run_that_another_process_begins_meanwhile_is_no_foreign_folder(tmp_path, monkeypatch):
    settings, folder = RunSettings(), RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".settings.json.0.tmp").touch()  # a draft
    assert folder.agree(settings) == settings
    look = RunFolder._is_foreign

    def after_another(self):
        settings.save(self / "settings.json")
        return look(self)

    monkeypatch.setattr(RunFolder, "_is_foreign", after_another)
    assert folder.agree(settings) == settings
