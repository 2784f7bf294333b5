"""Where an architecture may come from."""

import json

import pytest

from peft_noah import Architecture, SearchSettings, SearchSpace, search
from peft_noah.run.architecture_source import read_architecture, source_label

ARCHITECTURE = Architecture(lora=[8, 0], vpt=[1, 2])


@pytest.fixture
def found():
    return search(
        SearchSpace.vtab(4, modules="lora"),
        lambda a: a["lora"][0],
        lambda a: sum(a["lora"]),
        budget=100,
        settings=SearchSettings(4, 1, 2, 2, 2),
    )


def test_a_published_name():
    assert read_architecture("vtab/cifar100") == Architecture.published("vtab/cifar100")
    assert source_label("vtab/cifar100") == "vtab/cifar100"


def test_an_architecture_file(tmp_path):
    ARCHITECTURE.save(tmp_path / "mine.json")
    assert read_architecture(tmp_path / "mine.json") == ARCHITECTURE
    assert source_label(tmp_path / "mine.json") == "mine"


def test_a_search_or_the_run_folder_that_holds_it(tmp_path, found):
    found.save(tmp_path / "search.json")
    assert read_architecture(tmp_path / "search.json") == found.best.architecture
    assert read_architecture(str(tmp_path)) == found.best.architecture
    assert source_label(tmp_path) == tmp_path.name


def test_an_adapter_folder(tmp_path):
    config = {"peft_type": "NOAH", "architecture": ARCHITECTURE.to_dict()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_architecture(tmp_path) == ARCHITECTURE
    assert read_architecture(tmp_path / "adapter_config.json") == ARCHITECTURE


def test_an_adapter_of_another_method_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    with pytest.raises(ValueError, match="states no architecture: it is no NOAH adapter"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vtab/cifar", "no published architecture is named 'vtab/cifar'. Did you mean"),
        ("nothing", "no published architecture"),
        ("me/no-such-adapter", "the Hub did not give it"),
        ("none.json", "cannot read none.json"),
    ],
)
def test_what_is_none_of_these_says_what_was_tried(source, message):
    with pytest.raises(ValueError, match=message):
        read_architecture(source)


def test_an_empty_folder_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="neither adapter_config.json nor search.json"):
        read_architecture(tmp_path)
