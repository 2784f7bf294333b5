"""JSON files that are written whole and read with bounds."""

from __future__ import annotations

import io
import json
import os

import pytest

from peft_noah import jsonfile
from peft_noah.jsonfile import check_int, check_keys, dump_json, parse_json, read_json, write_atomically


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
