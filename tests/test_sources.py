"""A user's text names a folder here, or an id on the Hub."""

import os

import pytest

from peft_noah.sources import find_source, is_hub_id, shown_path, stored_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "imgs").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("text", ["imgs", "imgs/", "./imgs", "imgs/.", "owner/../imgs", "~/imgs", "~/imgs/"])
def test_a_folder_has_one_name_however_it_is_typed(text, here):
    assert stored_path(text) == str(here / "imgs")
    assert find_source(text, "dataset", "") == str(here / "imgs")
    assert stored_path(here / "imgs") == str(here / "imgs")


def test_a_folder_goes_before_a_hub_id(here):
    assert find_source("owner/name", "model", "") == str(here / "owner" / "name")
    assert find_source("owner/other", "model", "") == "owner/other"
    assert not is_hub_id("owner/name")


@pytest.mark.parametrize(
    "text",
    ["vit", "./vit", "../vit", "/none", "~/none", "a/b/c", "vit/", "/a/b", "nobody/", ".a/b", "a/.b", "", "a b/c"],
)
def test_what_is_neither_is_refused_with_its_name(text, here):
    assert not is_hub_id(text)
    with pytest.raises(ValueError, match="model folder '.*' does not exist, and it is no Hub id"):
        find_source(text, "model", "Give a folder.")


def test_a_card_shows_a_folder_below_the_working_folder_from_there(here, tmp_path):
    assert shown_path(str(here / "imgs")) == "imgs"
    assert shown_path("owner/other") == "owner/other"
    assert shown_path(os.path.abspath(os.sep)) == os.sep
