"""The paper's protocols find their folders under either convention's names, in the paper's order and numbers."""

from __future__ import annotations

import json

import datasets
import pytest
from image_files import lines_of, write_few_shot_task, write_image_folder, write_list, write_task, write_vtab_task

from peft_noah.architecture import Architecture
from peft_noah.experiments.detection import detect_tasks, read_groups, task_folder
from peft_noah.experiments.protocols import domain_tasks, few_shot_tasks, vtab_tasks

pytest_plugins = ["image_fixtures"]

# The two conventions that circulate, and Table 1's order.
AUTHORS = (
    "cifar100 caltech101 dtd oxford_flowers102 oxford_pet svhn sun397 patch_camelyon eurosat resisc45 "
    "diabetic_retinopathy clevr_count clevr_dist dmlab kitti dsprites_loc dsprites_ori smallnorb_azi smallnorb_ele"
).split()
COMMUNITY = [{"cifar100": "cifar", "oxford_pet": "oxford_iiit_pet"}.get(name, name) for name in AUTHORS]
NAMES = (
    "cifar100 caltech101 dtd flowers102 pets svhn sun397 camelyon eurosat resisc45 retinopathy clevr_count clevr_dist "
    "dmlab kitti dspr_loc dspr_ori snorb_azim snorb_ele"
).split()


def make(root, names):
    for name in names:
        (root / name / "annotations").mkdir(parents=True)
    return root


@pytest.mark.parametrize("folders", [AUTHORS, COMMUNITY, NAMES])
def test_vtab_is_found_under_either_conventions_names(tmp_path, folders):
    tasks = vtab_tasks(make(tmp_path, sorted(folders)))
    assert [task.name for task in tasks] == NAMES
    assert [task.dataset for task in tasks] == [str(tmp_path / folder) for folder in folders]
    groups = [task.group for task in tasks]
    assert groups == ["Natural"] * 7 + ["Specialized"] * 4 + ["Structured"] * 8


def test_vtabs_numbers_are_table_4s(tmp_path):
    tasks = vtab_tasks(make(tmp_path, AUTHORS))
    assert [task.num_classes for task in tasks] == [
        100,
        102,
        47,
        102,
        37,
        10,
        397,
        2,
        10,
        45,
        5,
        8,
        6,
        6,
        4,
        16,
        16,
    ] + [
        18,
        18,
    ]
    assert sum(task.sizes["test"] for task in tasks) == 387_904
    assert all((task.sizes["train"], task.sizes["validation"]) == (800, 200) for task in tasks)
    assert not any(task.augment or task.shots or task.other_tests for task in tasks)


def test_every_task_names_an_architecture_that_the_authors_published(tmp_path):
    make(tmp_path / "vtab", AUTHORS)
    make(tmp_path / "few", ["food101", "standford-cars", "oxford-flowers102", "fgvc-aircraft", "oxford-pets"])
    make(tmp_path / "dg", ["imagenet", "imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition"])
    tasks = [*vtab_tasks(tmp_path / "vtab"), *few_shot_tasks(tmp_path / "few"), *domain_tasks(tmp_path / "dg")]
    assert sorted(task.published for task in tasks) == sorted(Architecture.published_names())
    assert few_shot_tasks(tmp_path / "few", [3])[0].published is None


def test_few_shot_tasks_are_datasets_by_shots_with_augmentation(tmp_path):
    make(tmp_path, ["food-101", "stanford_cars", "oxford_flowers", "fgvc_aircraft", "oxford_pets"])
    tasks = few_shot_tasks(tmp_path, iter([1, 16]))
    assert tasks == few_shot_tasks(tmp_path, (1, 16)) and len(tasks) == 10
    with pytest.raises(ValueError, match="shots is 0; give a whole number from 1"):
        few_shot_tasks(tmp_path, [0])
    assert [task.full_name for task in tasks][:3] == ["food101-1shot", "food101-16shot", "stanford_cars-1shot"]
    assert tasks[1].sizes == {"train": 1_616, "validation": 20_200, "test": 30_300}
    assert all(task.augment and task.search_space == "few_shot" for task in tasks)
    assert {task.name for task in tasks} == {"food101", "stanford_cars", "flowers102", "fgvc_aircraft", "pets"}


def test_domain_generalisation_is_imagenet_with_four_further_test_sets(tmp_path):
    make(tmp_path, ["imagenet", "imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition"])
    (task,) = domain_tasks(tmp_path)
    assert list(task.other_tests) == ["v2", "sketch", "a", "r"]
    assert task.other_tests["a"] == str(tmp_path / "imagenet-adversarial")
    assert task.sizes == {
        **{"train": 16_000, "test": 50_000, "test v2": 10_000},
        **{"test sketch": 50_889, "test a": 7_500, "test r": 30_000},
    }
    assert detect_tasks(tmp_path) == (task,)
    (elsewhere,) = domain_tasks(tmp_path, {"r": tmp_path / "imagenet-rendition"})
    assert elsewhere.other_tests == {"r": str(tmp_path / "imagenet-rendition")}


def test_missing_and_doubled_folders_are_said_with_the_names_they_may_have(tmp_path):
    make(tmp_path, AUTHORS[1:])
    with pytest.raises(ValueError, match=r"misses 1 of 19 tasks of VTAB-1k: cifar100 \(as cifar100 or cifar or"):
        vtab_tasks(tmp_path)
    assert [task.name for task in vtab_tasks(tmp_path, ["svhn", "oxford_iiit_pet"])] == ["pets", "svhn"]
    with pytest.raises(ValueError, match="'mnist' is no task of VTAB-1k: known are cifar100, "):
        vtab_tasks(tmp_path, ["mnist"])
    make(tmp_path, ["cifar", "cifar100"])
    with pytest.raises(ValueError, match="two folders for task 'cifar100': .*cifar and .*cifar100"):
        vtab_tasks(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        vtab_tasks(tmp_path / "gone")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cifar", "dtd"], ["cifar100", "dtd"]),
        (["food101", "oxford-pets"], ["food101", "pets"]),
        (["oxford-pets", "oxford-flowers102"], ["flowers102", "pets"]),  # VTAB's names too, but lists of shots
        (["cifar", "mine"], ["cifar", "mine"]),
    ],
)
def test_the_protocol_is_told_by_the_names_of_the_folders(tmp_path, folders, expected, caplog):
    for name in folders:
        (write_few_shot_task if "-" in name or name == "food101" else write_vtab_task)(tmp_path / name)
    assert [task.name for task in detect_tasks(tmp_path, shots=[2])] == expected
    if expected[0] == "cifar100":
        assert "17 of VTAB-1k's tasks are not there: caltech101, flowers102, pets, " in caplog.text


def test_a_hub_dataset_with_one_config_per_task_is_a_folder_of_tasks(monkeypatch):
    configs = {"someone/vtab-1k": COMMUNITY, "someone/few": ["food101", "pets"], "me/own": ["x", "dtd"]}
    monkeypatch.setattr(datasets, "get_dataset_config_names", configs.__getitem__)
    assert [task.name for task in detect_tasks("someone/vtab-1k")] == NAMES
    assert vtab_tasks("someone/vtab-1k", ["cifar100"])[0].dataset == "someone/vtab-1k:cifar"
    assert [task.dataset for task in detect_tasks("someone/few", shots=[1])] == [
        "someone/few:food101",
        "someone/few:pets",
    ]
    assert [(task.name, task.dataset) for task in detect_tasks("me/own")] == [("x", "me/own:x"), ("dtd", "me/own:dtd")]
    with pytest.raises(ValueError, match="someone/gone .no folder here, so a Hub id"):
        vtab_tasks("someone/gone")


def test_groups_make_the_tasks_the_users_own_in_their_order(tmp_path):
    for name in ("dtd", "svhn"):
        write_task(tmp_path / "tasks" / name)
    tasks = detect_tasks(tmp_path / "tasks", groups={"svhn": "digits", "dtd": "other"})
    assert [(task.name, task.group, task.num_classes) for task in tasks] == [
        ("svhn", "digits", None),
        ("dtd", "other", None),
    ]
    (tmp_path / "tasks" / "tasks.json").write_text(json.dumps({"dtd": "a", "svhn": "b"}))
    assert [task.group for task in detect_tasks(tmp_path / "tasks")] == ["a", "b"]
    assert read_groups(tmp_path / "tasks" / "tasks.json") == {"dtd": "a", "svhn": "b"}


def test_a_folder_of_any_tasks_needs_no_groups(tmp_path, caplog):
    write_image_folder(tmp_path / "b")
    write_task(tmp_path / "a")
    write_list(tmp_path / "c", "train.txt", lines_of("train", [0, 1]))
    (tmp_path / "notes").mkdir()
    assert [(task.name, task.group) for task in task_folder(tmp_path)] == [("a", ""), ("b", ""), ("c", "")]
    assert "no task in notes, left out" in caplog.text


@pytest.mark.parametrize(
    ("groups", "message"),
    [({"a": "x", "gone": "x"}, "has no task 'gone', which has a group"), ({}, "task 'a' of .* has no group")],
)
def test_groups_that_do_not_fit_the_folders_are_refused(tmp_path, groups, message):
    write_task(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        task_folder(tmp_path, groups)


def test_what_is_no_folder_of_tasks_is_refused(tmp_path):
    (tmp_path / "groups.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match='holds no groups: expected an object like {"task": "group"'):
        read_groups(tmp_path / "groups.json")
    with pytest.raises(ValueError, match="holds no folder of a task. Give"):
        detect_tasks(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        detect_tasks(tmp_path / "gone")
    with pytest.raises(ValueError, match="It is a task itself: run it alone"):
        detect_tasks(write_task(tmp_path / "task"))


def test_a_suite_among_its_tasks_and_folders_that_no_person_made_are_no_tasks(tmp_path):
    for name in ("birds", "cars"):
        write_image_folder(tmp_path / name)
    (tmp_path / "__MACOSX" / "birds").mkdir(parents=True)
    (tmp_path / "noah-suite" / "birds").mkdir(parents=True)
    (tmp_path / "noah-suite" / "suite.json").write_text("{}")
    assert [task.name for task in detect_tasks(tmp_path)] == ["birds", "cars"]
