"""The checkpoint folder: whole or not at all, the newest good one, clear errors."""

import hashlib
import logging
import math
import time

import pytest
import torch
from safetensors.torch import save

from peft_noah.training.checkpoint import Checkpoint, CheckpointError, CheckpointFolder

IDENTITY = {"epochs": 3, "rate": 0.1, "clip": None}


def write(folder, *steps, size=10):
    for step in steps:
        tensors = {"weight": torch.full((size,), float(step)), "bytes": torch.arange(step % 7, dtype=torch.uint8)}
        folder.save(Checkpoint(step, IDENTITY, {"losses": [0.1, 1 / 3]}, tensors))


def names(folder):
    return sorted(path.name[:8] for path in folder.folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "run" / "checkpoint")


def test_what_is_saved_comes_back(folder):
    assert folder.load(IDENTITY) is None
    write(folder, 12)
    found = folder.load(IDENTITY)
    assert (found.step, found.identity, found.state) == (12, IDENTITY, {"losses": [0.1, 1 / 3]})
    assert torch.equal(found.tensors["weight"], torch.full((10,), 12.0))
    assert torch.equal(found.tensors["bytes"], torch.arange(5, dtype=torch.uint8))


def test_the_newest_is_taken_and_old_ones_are_pruned(folder):
    write(folder, 9, 99_999_999, 100_000_000)
    assert [name[:8] for name in names(folder)] == ["10000000", "99999999"]
    assert folder.load(IDENTITY).step == 100_000_000


def test_remove_leaves_no_folder(folder):
    write(folder, 1)
    folder.remove()
    folder.remove()
    assert not folder.folder.exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "renamed"])
def test_a_damaged_one_is_skipped_with_a_warning(folder, damage, caplog):
    write(folder, 1, 2)
    newest = max(folder.folder.iterdir())
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
    newest.write_bytes({"truncated": content[:-3], "empty": b""}.get(damage, bytes(content)))
    if damage == "renamed":
        newest.rename(newest.with_name(f"00000007-{newest.name[9:-20]}{'0' * 8}.safetensors"))
    with caplog.at_level(logging.WARNING, "peft_noah"):
        assert folder.load(IDENTITY).step == 1
    assert "damaged" in caplog.text and len(names(folder)) == 1
    write(folder, 2)
    assert folder.load(IDENTITY).step == 2


def test_a_safetensors_file_of_another_kind_is_skipped(folder, caplog):
    write(folder, 1)
    content = save({"a": torch.zeros(3)})
    (folder.folder / f"00000005-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    assert folder.load(IDENTITY).step == 1 and "damaged" in caplog.text


def test_leftovers_of_a_killed_writer_are_removed_and_other_files_are_not(folder):
    write(folder, 1)
    (folder.folder / f".{32 * '0'}.tmp").write_bytes(b"half")
    (folder.folder / "notes.safetensors").write_bytes(b"mine")
    assert folder.load(IDENTITY).step == 1
    assert sorted(path.name for path in folder.folder.iterdir())[1:] == ["notes.safetensors"]
    folder.remove()
    assert [path.name for path in folder.folder.iterdir()] == ["notes.safetensors"]


def test_a_checkpoint_of_another_training_is_refused_and_kept(folder):
    write(folder, 1)
    with pytest.raises(
        ValueError, match="another training: clip is None there and 1.0 here; rate is 0.1 there and 0.5"
    ):
        folder.load({**IDENTITY, "rate": 0.5, "clip": 1.0})
    assert folder.load(IDENTITY).step == 1


def test_those_ahead_of_a_new_one_go(folder):
    write(folder, 5, 6)
    write(folder, 2)
    assert names(folder) == ["00000002"]


def test_when_one_is_due(tmp_path):
    by_step = CheckpointFolder(tmp_path, every_seconds=None, every_steps=3)
    assert [by_step.due(step) for step in range(1, 7)] == [False, False, True, False, False, True]
    by_time = CheckpointFolder(tmp_path, every_seconds=0.05)
    assert not by_time.due(1)
    time.sleep(0.06)
    assert by_time.due(1)
    write(by_time, 1)
    assert not by_time.due(2)


@pytest.mark.parametrize(
    "option",
    [{"every_seconds": 0}, {"every_steps": 0}, {"keep": 0}, {"every_seconds": -1.0}, {"every_seconds": math.nan}],
)
def test_numbers_out_of_range_are_refused(tmp_path, option):
    with pytest.raises(
        ValueError, match=f"{next(iter(option))} is .*; give a (finite number above 0|whole number from 1)"
    ):
        CheckpointFolder(tmp_path, **option)


def test_a_full_disk_is_one_clear_error_and_the_previous_checkpoint_is_intact(folder):
    resource = pytest.importorskip("resource")  # a file-size limit stands for a full disk
    write(folder, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match="checkpoint of step 2 cannot .* too large.* Earlier ones are intact"
        ):
            write(folder, 2, size=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(folder) == ["00000001"]
    assert folder.load(IDENTITY).step == 1


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        write(CheckpointFolder(tmp_path / "file" / "checkpoint"), 1)
