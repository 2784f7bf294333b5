"""JSON files that are written whole and read with bounds."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from peft_noah import jsonfile
from peft_noah.jsonfile import (
    check_fields,
    check_int,
    check_keys,
    check_number,
    check_share,
    dump_json,
    load_json,
    make_plain_folder,
    parse_json,
    read_json,
    write_atomically,
)


def test_text_has_one_key_a_line_and_one_element_a_line_in_lists_of_mappings():
    data = {"row": [1, 2], "empty": [], "history": [{"a": 1}, {"a": 2}]}
    text = dump_json(data)
    assert text.splitlines() == [
        "{",
        '  "row": [1, 2],',
        '  "empty": [],',
        '  "history": [',
        '    {"a": 1},',
        '    {"a": 2}',
        "  ]",
        "}",
    ]
    assert json.loads(text) == data


def test_nan_is_never_written():
    with pytest.raises(ValueError):
        dump_json({"score": float("nan")})
    with pytest.raises(ValueError):
        dump_json({"history": [{"score": float("inf")}]})


def test_a_file_that_is_too_large_is_refused_unparsed(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfile, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.json").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(ValueError, match="large.json has more than 10 bytes"):
        read_json(tmp_path / "large.json")
    with pytest.raises(ValueError, match="more than 10 bytes"):
        parse_json(" " * 11, "the text")


def test_no_more_than_the_bound_is_ever_read(monkeypatch):
    asked = []

    class Endless(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return b" " * min(size, 1_000)

    monkeypatch.setattr(jsonfile, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(jsonfile, "open", lambda *_: Endless(), raising=False)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_json("endless.json")
    assert asked == [11]


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError("No space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            with pytest.raises(OSError, match="No space left"):
                write_atomically(path, "new")
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]


def test_check_keys_names_what_is_missing_and_what_is_unknown():
    check_keys({"a": 1, "b": 2}, ("a", "b"), "a thing")
    with pytest.raises(ValueError, match=r"a thing has a, b; this one misses b and has unknown \['c'\]"):
        check_keys({"a": 1, "c": 2}, ("a", "b"), "a thing")
    with pytest.raises(ValueError, match="a thing is a mapping with a, b, not 5"):
        check_keys(5, ("a", "b"), "a thing")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 11])
def test_check_int_refuses_what_is_no_whole_number_in_bounds(value):
    with pytest.raises(ValueError, match="the rank is .*; give a whole number from 0 to 10"):
        check_int(value, "the rank", 0, 10)


def test_check_int_lets_the_bounds_pass():
    assert [check_int(value, "the rank", 0, 10) for value in (0, 10)] == [0, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[NaN]", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("[1e999]", "'1e999' is too large"),
        ("[" + "9" * 5_000 + "]", "4300"),
        ("[" * 100_000, "recursion"),
        (b'["\xff"]', "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
    ],
)
def test_what_two_readers_could_take_for_two_things_is_refused(text, message):
    with pytest.raises(ValueError, match=f"the text is not valid JSON .*{message}"):
        parse_json(text, "the text")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="no regular file"):
        read_json(tmp_path / "pipe.json")


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "result.json").symlink_to(tmp_path / "outside")
    write_atomically(tmp_path / "result.json", "new")
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (tmp_path / "result.json").is_symlink() and (tmp_path / "result.json").read_text() == "new"


def test_a_folder_is_made_but_never_through_a_link(tmp_path):
    assert make_plain_folder(tmp_path / "a" / "b").is_dir() and make_plain_folder(tmp_path / "a" / "b").is_dir()
    for name, target in (("link", tmp_path / "a"), ("broken", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match="is a link, and nothing is written through one"):
            make_plain_folder(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


@dataclass
class Fields:
    count: int | None = None
    share: float = 0.5
    on: bool = False
    names: tuple[str, ...] | None = None
    more: Mapping[str, int] | None = None


def test_fields_of_the_right_types_pass():
    check_fields(Fields())
    check_fields(Fields(3, 1, True, ["a"], {"a": 1}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": True},
        {"count": 1.0},
        {"count": 2**64},
        {"share": "1"},
        {"share": math.nan},
        {"share": None},
        {"on": 1},
        {"names": "ab"},
        {"names": [1]},
        {"names": ["x" * 10_001]},
        {"more": [1]},
        {"more": {"a": "b"}},
        {"more": {1: 1}},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is .*; expected ") as caught:
        check_fields(Fields(**wrong))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -0.5, 10**400, 2.5])
def test_what_is_no_number_within_its_bounds_is_refused_by_name(value):
    with pytest.raises(ValueError, match="rate is .*; give a finite number of at least 0 and at most 2."):
        check_number(value, "rate", 0, 2)


def test_a_number_is_a_plain_float_and_may_have_no_upper_bound():
    assert [type(check_number(value, "rate", 0)) for value in (3, 0.5, np.float32(0.5))] == [float] * 3
    with pytest.raises(ValueError, match="rate is -1; give a finite number of at least 0."):
        check_number(-1, "rate", 0)


def test_a_bound_of_a_number_may_be_left_out_itself():
    assert (check_number(1, "rate", above=0, high=1), check_number(0, "rate", 0, below=1)) == (1.0, 0.0)
    with pytest.raises(ValueError, match="rate is 0; give a finite number above 0 and below 1."):
        check_number(0, "rate", above=0, below=1)
    with pytest.raises(ValueError, match="rate is 1; give a finite number above 0 and below 1."):
        check_number(1, "rate", above=0, below=1)
    with pytest.raises(ValueError, match="rate is nan; give a finite number."):
        check_number(math.nan, "rate")


def test_a_share_is_not_given_in_percent():
    assert check_share(1, "accuracy") == 1.0
    with pytest.raises(ValueError, match="accuracy is 75.0; give a share from 0 to 1, not percent"):
        check_share(75.0, "accuracy")


def test_what_cannot_be_made_of_a_file_is_said_with_the_files_name(tmp_path):
    path = tmp_path / "rate.json"
    path.write_text("-1")
    assert load_json(path, lambda data: check_number(data, "rate", -2, 2), "a rate") == -1.0
    with pytest.raises(ValueError, match=r"rate\.json does not hold a rate: rate is -1"):
        load_json(path, lambda data: check_number(data, "rate", 0), "a rate")
