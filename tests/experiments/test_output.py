"""All tables and figures of a suite in one folder: which there are, that they are the same each time, hostile names."""

from __future__ import annotations

import shutil

import pytest
from cell_files import BACKBONE, write_cell
from test_analysis import SEARCH

from peft_noah.experiments.output import write_tables


def write_suite(folder):
    """Cells of every kind, one that failed, and a search."""
    rows = {"lora": [1, 5, 0], "vpt": [10, 10, 10]}
    for seed in range(2):
        for task, group in (("cifar100", "Natural"), ("dmlab", "Structured")):
            for place, method in enumerate(("lora", "noah inherited", "noah retrained")):
                found = rows if "noah" in method else None
                write_cell(folder, task, method, seed, 0.5 + 0.1 * place, group=group, architecture=found)
        write_cell(folder, "dmlab", "transfer cifar100", seed, 0.6, group="Structured", architecture=rows)
        write_cell(folder, "food101", "lora", seed, 0.4, shots=1)
        write_cell(folder, "imagenet", "lora", seed, 0.7, shots=16, tests={"v2": (0.6, 100)})
    SEARCH.save(folder / "dmlab" / "seed0" / "search.json")
    (folder / "dmlab" / "seed0" / "results" / "vpt.error.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A suite and all that was written of it."""
    suite = write_suite(tmp_path_factory.mktemp("suites") / "suite")
    return suite, write_tables(suite, tmp_path_factory.mktemp("out") / "new" / "tables", top=2)


def test_everything_the_cells_allow_is_written(written):
    paths = written[1]
    assert paths[0].name == "tables.md"
    names = {path.name for path in paths}
    assert names == {path.name for path in paths[0].parent.iterdir()} and len(names) == len(paths)
    tables = {path.stem for path in paths if path.suffix == ".csv"}
    assert tables == {
        "table1", "table2", "table3", "few_shot", "transfer", "differences", "differences_by_task", "best_depths",
        "best_dims",
    }  # fmt: skip
    assert tables == {path.stem for path in paths if path.suffix == ".tex"}
    assert {path.stem for path in paths if path.suffix == ".png"} == {
        "fig3_groups", "fig4_few_shot", "fig5_architectures", "fig6_transfer", "best",
    }  # fmt: skip


def test_equal_cells_give_equal_bytes_wherever_they_lie(written, tmp_path):
    suite, paths = written
    shutil.copytree(suite, tmp_path / "elsewhere")
    for path, earlier in zip(write_tables(tmp_path / "elsewhere", tmp_path / "two", top=2), paths, strict=True):
        assert path.name == earlier.name and path.read_bytes() == earlier.read_bytes()


def test_one_page_holds_all_tables_and_says_what_was_run(written):
    paths = written[1]
    text = paths[0].read_text()
    assert "- finished cells: 18\n- failed cells: 1\n- searches: 1\n" in text
    assert "- backbone: vit-tiny\n" in text and "models/" not in text
    assert "- epochs: 10\n" in text and "- lr" not in text  # lr is not the same in all cells
    for path in paths:
        if path.suffix == ".md" and path != paths[0]:
            assert f"\n{path.read_text().splitlines()[0]}\n" in text
    assert "![Test accuracy against shots](fig4_few_shot.png)" in text
    # A note that several tables need stands once.
    assert text.count("Error of a mean over rows") == 1


def test_a_suite_with_one_cell_gives_what_it_can(tmp_path):
    write_cell(tmp_path / "suite", "mine")
    names = [path.name for path in write_tables(tmp_path / "suite", tmp_path / "out")]
    assert names == ["tables.md", "fig3_groups.png", "table1.md", "table1.tex", "table1.csv"]


def test_cells_of_one_method_with_other_settings_are_said(tmp_path):
    for seed in range(2):
        write_cell(tmp_path / "suite", "mine", "vpt", seed)
    path = write_cell(tmp_path / "suite", "mine", "lora", 0)
    assert "differ in" not in write_tables(tmp_path / "suite", tmp_path / "out")[0].read_text()
    path.with_name("vpt.json").write_text(
        path.with_name("vpt.json").read_text().replace('"epochs": 10', '"epochs": 90')
    )
    text = write_tables(tmp_path / "suite", tmp_path / "out")[0].read_text()
    assert "**Cells of one method differ in epochs: compare with care.**" in text and "- epochs" not in text


def test_nothing_is_written_where_a_cell_cannot_be_read(tmp_path):
    suite = write_suite(tmp_path / "suite")
    path = next(suite.glob("dmlab/seed1/results/*.json"))
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="--retry"):
        write_tables(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cells_of_two_backbones_are_not_compared(tmp_path):
    write_cell(tmp_path / "a", seed=0)
    write_cell(tmp_path / "b", seed=1, backbone=BACKBONE | {"model": "/elsewhere/vit-tiny/"})
    assert "- seeds: 0, 1\n" in write_tables([tmp_path / "a", tmp_path / "b"], tmp_path / "out")[0].read_text()
    write_cell(tmp_path / "b", seed=2, backbone=BACKBONE | {"model": "vit-huge"})
    with pytest.raises(ValueError, match="vit-huge.*no table compares them"):
        write_tables([tmp_path / "a", tmp_path / "b"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_hostile_names_stay_names_in_every_file(tmp_path):
    name = "</table><script>|**x** \\input{y} $\\frac{ =1+1"
    for seed in range(2):
        write_cell(tmp_path / "suite", "task", name, seed, slug="one", group=name)
        write_cell(tmp_path / "suite", "task", "noah retrained", seed, 0.9, group=name, architecture={"lora": [1]})
    texts = {
        path.suffix: path.read_text()
        for path in write_tables(tmp_path / "suite", tmp_path / "out")
        if path.stem == "table1"
    }
    assert "<script" not in texts[".md"] and "\\*\\*x\\*\\*" in texts[".md"]
    assert "\\input" not in texts[".tex"] and "\\frac" not in texts[".tex"]
