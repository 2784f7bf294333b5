"""A search space of a user's own on the command line: rows of a named one, or a JSON file."""

import json

import pytest
from conftest import make_model
from tiny_runs import SMALL, invoke, write_task

from peft_noah import SearchSpace
from peft_noah.results.report import RunReport
from peft_noah.run.settings import RunSettings
from peft_noah.searching.result import SearchResult

OWN = {"dims": {"lora": [2, 3], "ssf": [0, 1], "adapter": [[0], [0], [0, 4], [2, 4]]}, "depths": {"lora": [2, 4]}}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces")
    make_model().save_pretrained(folder / "vit")
    write_task(folder / "task")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def start(*options):
    return invoke("supernet", "--model", "vit", "--dataset", "task", *SMALL, *options)


def test_a_file_is_kept_by_its_content_and_searched_by_a_later_stage(work):
    (work / "space.json").write_text(json.dumps(OWN))
    done = start("--search-space", "space.json", "--output", "own")
    assert done.exit_code == 0, done.output
    (work / "space.json").unlink()
    assert json.loads((work / "own" / "settings.json").read_text())["search_space"] == OWN
    done = invoke("search", "own")
    assert done.exit_code == 0, done.output
    found, space = SearchResult.load(work / "own" / "search.json"), SearchSpace(4, **OWN)
    assert found.space == space and all(candidate.architecture in space for candidate in found.candidates)
    assert {"lora", "ssf", "adapter"} == set(found.best.architecture)
    assert (work / "own" / "adapter-inherited").exists()
    assert invoke("tables", "own").exit_code == 0


def test_the_wide_space_is_searched_and_its_best_trained_to_the_end(work):
    options = ("--strategy", "noah", "--search-space", "wide", "--baselines", "none", *SMALL)
    done = invoke("run", "--model", "vit", "--dataset", "task", *options, "--output", "wide")
    assert done.exit_code == 0, done.output
    found = SearchResult.load(work / "wide" / "search.json")
    assert found.space == SearchSpace.wide(4) and found.best.architecture in found.space
    results = RunReport.load(work / "wide" / "results.json").results
    assert [result.method for result in results] == ["noah inherited", "noah retrained", "noah continued"]
    assert {result.parameters for result in results} == {found.best.parameters}


def test_rows_of_a_named_space_are_chosen(work):
    done = start("--modules", "ssf,lora_fc1", "--search-space", "few_shot", "--output", "rows")
    assert done.exit_code == 0, done.output
    config = json.loads((work / "rows" / "supernet" / "adapter_config.json").read_text())
    assert config["search_space"] == SearchSpace.few_shot(4, modules=("ssf", "lora_fc1")).to_dict()
    assert json.loads((work / "rows" / "settings.json").read_text())["modules"] == ["ssf", "lora_fc1"]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"dims": {"lorra": [1]}}, "unknown prompt module 'lorra' (known: lora, adapter, vpt"),
        ({"dims": {"ssf": [1, 2]}}, "ssf is there or not: its dim is 1 or 0, not 2"),
        ({"dims": {"lora": [0.5]}}, "one of the dims of 'lora' is 0.5; give a whole number from 0 to 65,536"),
        (
            {"dims": {"lora": [0, 1]}, "depths": {"lora": [1, 2]}},
            "row 'lora' has depths, but each of its blocks chooses",
        ),
        ({"dims": {"lora": [1]}, "depths": {"lora": [9]}, "num_blocks": 4}, "one of the depths of 'lora' is 9"),
        ({"lora": [1]}, "a search space has num_blocks, dims, depths; this one misses dims and has unknown ['lora']"),
        ({"dims": 3}, "dims is 3; give a mapping"),
        ([1], "a search space is a mapping with num_blocks, dims, depths"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_before_anything_is_written(space, said, work):
    (work / "wrong.json").write_text(json.dumps(space))
    done = start("--search-space", "wrong.json", "--output", "none")
    text = " ".join(done.output.split())
    assert done.exit_code == 2 and "wrong.json does not hold a search space: " in text and said in text, text
    assert not (work / "none").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--modules", "lora,far"), "unknown prompt module 'far'"),
        (("--modules", "lora,lora"), "row 'lora' stands twice in modules"),
        (("--search-space", "huge"), "search_space must be one of vtab, few_shot, wide, or a JSON file, got 'huge'"),
        (("--search-space", "nowhere.json"), "cannot read nowhere.json: No such file or directory"),
        (("--search-space", "six.json"), "the search space is for 6 blocks, but this backbone has 4"),
        (("--search-space", "deep.json"), "one of the depths of 'lora' is 12; give a whole number from 0 to 4"),
        (("--search-space", "gate.json"), "called 'gate', and the blocks of this 'vit' have none"),
        (("--search-space", "six.json", "--modules", "lora"), "the one in a file has its own: leave one out"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(options, said, work):
    (work / "six.json").write_text(json.dumps({"num_blocks": 6, "dims": {"lora": [2]}}))
    (work / "deep.json").write_text(json.dumps({"dims": {"lora": [2]}, "depths": {"lora": [12]}}))
    (work / "gate.json").write_text(json.dumps({"dims": {"lora_gate": [2]}}))
    done = start(*options, "--output", "none")
    assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
    assert not (work / "none").exists()


def test_python_gives_a_space_as_plain_data():
    settings = RunSettings(search_space=SearchSpace(4, **OWN).to_dict(), strategy="noah")
    assert settings.space(4) == SearchSpace(4, **OWN) and settings.protocol == "vtab"
    assert RunSettings().space(4) == "vtab"
    with pytest.raises(ValueError, match="a search space of your own has no effect on strategy fixed"):
        RunSettings(search_space=SearchSpace(4, **OWN).to_dict())
