"""Images found in files and folders: which, in what order, and what is left out."""

import os
from collections import Counter

import pytest

from peft_noah.data.image_paths import find_images


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder, *paths):
    left_out = Counter()
    images = list(find_images(paths or [folder], left_out))
    return [os.path.relpath(image, folder) for image in images], dict(left_out)


def test_images_come_in_the_order_of_their_names_whatever_the_depth(tmp_path):
    touch(tmp_path, "b.png", "a/2.JPG", "a/1.jpeg", "a/z/0.webp", "c.tif", "B.bmp")
    assert found(tmp_path) == (["B.bmp", "a/1.jpeg", "a/2.JPG", "a/z/0.webp", "b.png", "c.tif"], {})


def test_what_is_no_image_or_hidden_is_counted_by_its_kind(tmp_path):
    touch(
        tmp_path,
        "a.png",
        "a.txt",
        "b/c.TXT",
        "d.eps",
        "Makefile",
        ".b.png",
        ".git/e.png",
        "b/.f/g.png",
        "@eaDir/g.png",
    )
    (tmp_path / "h.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert found(tmp_path) == (
        ["a.png"],
        {
            ".txt files": 2,
            ".eps files": 1,
            "files without an extension": 1,
            "hidden files": 1,
            "hidden folders": 2,
            "folders named @eaDir": 1,
            "broken links": 1,
            "files of no regular kind": 1,
        },
    )


def test_what_is_given_is_taken_whatever_its_name_and_as_often(tmp_path):
    touch(tmp_path, "photo", ".cache/a.png")
    paths = [tmp_path / "photo", tmp_path / ".cache", tmp_path / "photo"]
    assert found(tmp_path, *paths) == (["photo", ".cache/a.png", "photo"], {})


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    touch(tmp_path, "a/1.png", "elsewhere/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "to").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "z.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    images, left_out = found(tmp_path, tmp_path / "a")
    assert images == ["a/1.png", "a/to/2.png", "a/z.png"] and left_out == {"links to a folder above": 1}


def test_a_folder_is_read_when_its_turn_comes(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    images = find_images([tmp_path])
    assert next(images).endswith("a/1.png")
    touch(tmp_path, "b/2.png")
    assert [os.path.basename(image) for image in images] == ["1.png", "2.png"]


def test_paths_keep_the_form_they_are_given_in(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png")
    monkeypatch.chdir(tmp_path)
    assert list(find_images(["a", "./a/1.png"])) == ["a/1.png", "./a/1.png"]


def test_what_is_not_there_or_no_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no file or folder '.*missing.png'. Give image files"):
        list(find_images([tmp_path / "missing.png"]))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="pipe.png is neither an image file nor a folder"):
        list(find_images([tmp_path / "pipe.png"]))
