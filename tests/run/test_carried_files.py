"""What goes to a node and comes back: only files of the work that was done there, and none through a link."""

import pytest
from clusters import Here

from peft_noah.jsonfile import dump_json
from peft_noah.results.report import RunReport
from peft_noah.run import pieces
from peft_noah.run.carried_files import check_places, write_files
from peft_noah.run.folder import RunFolder
from peft_noah.run.methods import LORA, RACED, SEARCH
from peft_noah.run.settings import RunSettings

OUTSIDE = [
    "../x.json",
    "/x.json",
    "adapter-lora/../../x",
    "adapter-lora//x",
    "adapter-lora/..",
    "C:/x",
    "adapter-lora\\x",
]


@pytest.mark.parametrize(
    ("work", "allowed", "refused"),
    [
        (
            LORA,
            ["results/lora.json", "adapter-lora/README.md", "logs/lora-on-train.jsonl", "settings.json", "stages.json"],
            ["results/linear.json", "search.json", "adapter/README.md", "logs/x/y.jsonl", "logs/x", "adapter-lora/", *OUTSIDE],
        ),
        (RACED, ["race.json", "race/race-all-sites-fold-0.safetensors", "adapter-race/a/b"], ["search.json", *OUTSIDE]),
        (SEARCH, ["search.json", "supernet/adapter_config.json"], ["results/lora.json", "race.json", *OUTSIDE]),
    ],
    ids=lambda case: getattr(case, "name", ""),
)  # fmt: skip
def test_a_piece_leaves_files_of_its_work_alone(work, allowed, refused):
    check_places(allowed, pieces._places(work))
    for name in refused:
        with pytest.raises(ValueError, match="which is no file of its work; nothing of it is written"):
            check_places([*allowed, name], pieces._places(work))


def test_nothing_is_written_through_a_link_inside_a_run_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "race").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        write_files(tmp_path / "run", {"race/a.safetensors": b""})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_a_node_leaves_beside_its_work_ends_that_piece_alone_and_nothing_of_it_is_written(tmp_path, monkeypatch):
    left = {
        "bad": {"results/lora.json": b"{}", "../bad.json": b"{}"},
        "times": {"adapter-lora/README.md": b"fine", "stages.json": b'{"race": 3}'},
        "none": {"results/lora.json": dump_json(RunReport().to_dict()).encode()},
        "good": {"adapter-lora/README.md": b"fine"},
    }
    monkeypatch.setattr(pieces, "do_piece", lambda packed: left[packed["settings"]["task_name"]])
    asked = {
        name: pieces.Piece(RunFolder(tmp_path / name), RunSettings(task_name=name), lambda: LORA) for name in left
    }
    ended = {}
    pieces.run_pieces(Here(), asked, lambda key: None, ended.__setitem__)
    assert "'../bad.json', which is no file of its work" in str(ended["bad"]) and ended["good"] is None
    assert "another result than one of lora" in str(ended["none"])
    assert "a stage in stages.json is a mapping with seconds, peak_memory, not 3" in str(ended["times"])
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "good/adapter-lora/README.md"
    ]
