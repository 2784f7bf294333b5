"""Stages of a run belong together: they read the same images, labels and backbone, or fail before they write."""

import json
import os
import shutil

import pytest
from conftest import make_model
from tiny_runs import SMALL, invoke

from peft_noah.results.report import RunReport
from peft_noah.run.context import RunContext
from peft_noah.run.inputs import INPUTS, class_changes, data_changes, read_inputs
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import run_everything, run_method


def write_images(folder, classes=("cat", "dog"), shift=0):
    """A folder of images by split and class."""
    from PIL import Image

    for split, number in (("train", 4), ("validation", 2), ("test", 2)):
        for index, name in enumerate(classes):
            for image in range(number):
                path = folder / split / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (90 * index + image + shift, 40, len(split))).save(path)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a backbone, images, and a run whose supernet is trained, all named as from inside the folder."""
    folder = tmp_path_factory.mktemp("begun")
    make_model().save_pretrained(folder / "vit")
    write_images(folder / "imgs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = invoke("supernet", "--model", "./vit", "--dataset", "imgs/", *SMALL, "--output", "run")
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copy(begun, tmp_path, monkeypatch):
    """The same in a place of its own; its settings name the folders there."""
    place = tmp_path / "place"
    shutil.copytree(begun, place)
    settings = json.loads((place / "run" / "settings.json").read_text())
    settings.update(model=str(place / "vit"), dataset=str(place / "imgs"))
    (place / "run" / "settings.json").write_text(json.dumps(settings))
    monkeypatch.chdir(place)
    return place


def files(folder):
    # that a process looked at the folder leaves its lock
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts
    }


def refused(place, *arguments):
    before = files(place / "run")
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert files(place / "run") == before
    return " ".join(result.output.split())


STAGES = {
    "supernet": ("supernet", "--model", "vit", "--dataset", "imgs", *SMALL, "--output", "run"),
    "run": (
        *("run", "--strategy", "noah", "--model", "vit", "--dataset", "imgs"),
        *(*SMALL, "--output", "run", "--baselines", "none"),
    ),
    "search": ("search", "run"),
    "subnet": ("subnet", "run"),
    "baseline": ("baseline", "run", "--method", "linear"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_data_with_a_renamed_class(stage, copy):
    for split in ("train", "validation", "test"):
        (copy / "imgs" / split / "dog").rename(copy / "imgs" / split / "wolf")
    said = refused(copy, *STAGES[stage])
    assert "no longer those that the run in run began with: classes gone: 'dog', new: 'wolf'" in said


def test_images_that_were_added_or_removed_are_counted(copy):
    shutil.copy(copy / "imgs/train/cat/0.png", copy / "imgs/train/cat/9.png")
    os.remove(copy / "imgs/test/dog/1.png")
    said = refused(copy, "search", "run")
    assert "train has 9 images, and had 8 images; test has 3 images, and had 4 images" in said


def test_other_contents_are_noticed(copy):
    write_images(copy / "imgs", shift=1)
    assert "the same classes with as many images, but other images or labels" in refused(copy, "search", "run")


def test_another_preprocessing_is_noticed(copy):
    (copy / "vit" / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "image_mean": [0.1] * 3}
        )
    )
    said = refused(copy, "search", "run")
    assert "the preprocessing has mean [0.1, 0.1, 0.1], and had [0.5, 0.5, 0.5]" in said


@pytest.mark.parametrize("stage", ["search", "baseline"])
def test_another_backbone_of_the_same_shape_is_noticed(stage, copy):
    make_model(seed=1).save_pretrained(copy / "vit")
    assert "the weights of" in refused(copy, *STAGES[stage])


@pytest.mark.parametrize("dataset", ["imgs", "imgs/", "./imgs", "~/imgs", "../place/imgs"])
def test_the_same_folder_typed_otherwise_is_the_same_run(dataset, copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy))
    result = invoke("supernet", "--model", "vit/", "--dataset", dataset, *SMALL, "--output", "~/run")
    assert result.exit_code == 0, result.output
    assert not (copy / "~").exists()


def test_a_stage_from_another_working_folder_reads_the_same(copy, tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "imgs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invoke("baseline", copy / "run", "--method", "linear").exit_code == 0
    settings = json.loads((copy / "run" / "settings.json").read_text())
    assert (settings["model"], settings["dataset"]) == (str(copy / "vit"), str(copy / "imgs"))


def test_settings_of_an_older_run_with_relative_paths_still_load(copy, tmp_path, monkeypatch):
    path = copy / "run" / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "vit", "dataset": "imgs"}))
    (copy / "run" / INPUTS).unlink()
    assert invoke("baseline", "run", "--method", "linear").exit_code == 0
    assert read_inputs(copy / "run")[0]["label_names"] == ["cat", "dog"]
    monkeypatch.chdir(tmp_path)
    result = invoke("baseline", copy / "run", "--method", "linear")
    assert result.exit_code == 2 and "model folder 'vit' does not exist" in " ".join(result.output.split())


def test_an_older_run_is_compared_with_its_results(copy):
    assert invoke("baseline", "run", "--method", "linear").exit_code == 0
    (copy / "run" / INPUTS).unlink()
    write_images(copy / "imgs", shift=1)
    assert "other images or labels" in refused(copy, "search", "run")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--dataset", "imagenet"), ("--model", "vit-base"), ("--other-test", "far=places"), ("--dataset", "./x/y")],
)
def test_what_is_neither_a_folder_nor_owner_and_name_never_reaches_the_hub(option, value, copy, monkeypatch):
    def reached(*args, **kwargs):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("datasets.load_dataset", reached)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", reached)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", reached)
    given = {"--model": "vit", "--dataset": "imgs", option: value}
    result = invoke("supernet", *(word for pair in given.items() for word in pair), *SMALL, "--output", "new")
    assert result.exit_code == 2 and "no folder" in result.output or "does not exist" in result.output, result.output
    assert not (copy / "new").exists()


@pytest.mark.parametrize(
    ("known", "found", "words"),
    [
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["b", "a"], ["the same classes are in another order"]),
        (["a", "b"], ["a", "b", "c"], ["classes new: 'c'"]),
        (["a", "b"], ["a"], ["classes gone: 'b'"]),
        (["a", "b"], ["a", "c"], ["classes gone: 'b', new: 'c'"]),
        ([*"abcdefgh"], [], ["classes gone: 'a', 'b', 'c', 'd', 'e' and 3 more"]),
    ],
)
def test_changes_of_classes_in_words(known, found, words):
    assert class_changes(known, found) == words


def test_changes_of_further_test_sets_are_counted():
    data = {
        "label_names": ["a"],
        "sizes": {"test": 2},
        "fingerprint": "1",
        "other_tests": {"far": {"size": 1, "classes": 1}},
    }
    assert data_changes(data, {**data, "fingerprint": "2", "other_tests": {}}) == [
        "test far has no images, and had 1 image"
    ]


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"data": 1, "backbone": {}}', '{"data": {}, "backbone": {"fingerprint": 3}}']
)
def test_inputs_that_are_none_are_an_error(content, tmp_path):
    (tmp_path / INPUTS).write_text(content)
    with pytest.raises(ValueError, match=INPUTS):
        read_inputs(tmp_path)


# ---------------------------------------------------------------------- what decorates a result


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = RunSettings.load(begun / "run" / "settings.json")
    run_everything(RunContext(folder, RunSettings(**{**vars(settings), "baselines": ("linear",)})))
    return folder


DECORATION = ["figures/search.png", "figures/architecture.png"] + [
    f"adapter{how}/{name}" for how in ("", "-inherited", "-continued") for name in ("README.md", "architecture.png")
]


@pytest.mark.parametrize("lost", [*DECORATION, "results.md", "results.json"])
def test_what_a_killed_job_left_out_is_written_by_the_next_call(lost, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    wanted = (folder / lost).read_bytes()
    (folder / lost).unlink()
    run_everything(RunContext(folder))
    assert (folder / lost).read_bytes() == wanted


def test_a_table_that_lacks_a_row_is_written_anew(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    report = RunReport.load(folder / "results.json")
    RunReport(
        report.results[:2],
        **{n: getattr(report, n) for n in ("task", "backbone", "preprocessing", "settings", "versions")},
    ).save(folder)
    run_method(RunContext(folder), "linear")
    assert len(RunReport.load(folder / "results.json").results) == 4


def test_figures_that_cannot_be_drawn_are_a_warning_and_drawn_by_the_next_call(
    begun, finished, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "run"
    shutil.copytree(begun / "run", folder)

    def broken(*args, **kwargs):
        raise RuntimeError("no fonts")

    with monkeypatch.context() as context:
        context.setattr("peft_noah.run.publishing.plot_search", broken)
        context.setattr("peft_noah.run.publishing.plot_architecture", broken)
        result = invoke("search", folder)
    assert result.exit_code == 0, result.output
    assert "search.png was not written (RuntimeError: no fonts). All results are there" in caplog.text
    assert (folder / "search.json").exists() and RunContext(folder).files.result("noah inherited") is not None
    assert "![" not in (folder / "adapter-inherited" / "README.md").read_text()
    assert invoke("search", folder).exit_code == 0
    assert "![" in (folder / "adapter-inherited" / "README.md").read_text()
    for name in ("figures/search.png", "adapter-inherited/architecture.png"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_baseline_writes_the_cards_that_an_earlier_job_has_left_out(copy):
    assert invoke("search", "run").exit_code == 0
    missing = [copy / "run" / name for name in ("adapter-inherited/README.md", "figures/search.png")]
    for path in missing:
        path.unlink()
    assert invoke("baseline", "run", "--method", "linear").exit_code == 0
    assert all(path.exists() for path in missing)
