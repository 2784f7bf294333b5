"""The measurement on texts: what it prepares, and that its committed table is that of its rows."""

import csv
import importlib.util
import io
import json
import tarfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def text():
    spec = importlib.util.spec_from_file_location("benchmark_text", FOLDER / "text.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tar_of(name, content):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return held.getvalue()


def test_clear_and_short_snippets_become_splits_of_as_many_of_each_class(text, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "SIZES", {"train": 4, "validation": 2, "test": 2})
    rows = [(sign * (1.0 + index / 10), f"snippet {sign} {index}") for index in range(4) for sign in (-1, 1)]
    rows += [(0.4, "neither"), (3.0, "long " * 20)]
    lines = "\n".join(f"{number}\t{rating}\t{words}" for number, (rating, words) in enumerate(rows))
    inner = tar_of(f"hutto/{text.RATINGS}", lines.encode("latin-1"))
    (tmp_path / "package.tar.gz").write_bytes(tar_of("package/extra/hutto_ICWSM_2014.tar.gz", inner))
    text.prepare(tmp_path / "package.tar.gz", tmp_path / "out")
    found = []
    for split, size in text.SIZES.items():
        with open(tmp_path / "out" / f"{split}.csv", newline="") as file:
            of_split = list(csv.DictReader(file))
        assert [row["label"] for row in of_split].count("positive") == size // 2 == len(of_split) // 2
        found += of_split
    assert len({row["text"] for row in found}) == 8
    assert all(("-1" in row["text"]) == (row["label"] == "negative") for row in found)


def test_the_committed_table_of_texts_is_that_of_its_rows(text):
    rows = [json.loads(line) for line in (FOLDER / "results_text.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == set(text.METHODS)
    table = text.report(rows)
    assert (FOLDER / "results_text.md").read_text() == table + "\n"
    assert table in (FOLDER.parent / "docs" / "text.md").read_text()
