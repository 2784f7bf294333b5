"""An adapter is scored on its own backbone and its own classes, or not at all."""

import csv
import io
import json
import shutil

import PIL.Image
import pytest
from conftest import make_model
from datasets import ClassLabel, Dataset, Features, Image
from tiny_runs import SMALL, invoke, rows, write_task

from peft_noah.results.report import RunReport


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A backbone, its task, and a run with an inherited adapter."""
    folder = tmp_path_factory.mktemp("made")
    make_model().save_pretrained(folder / "vit")
    write_task(folder / "task")
    run = ("--model", folder / "vit", "--dataset", folder / "task", *SMALL, "--output", folder / "run")
    assert invoke("supernet", *run).exit_code == 0
    assert invoke("search", folder / "run").exit_code == 0
    return folder


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def score(place, *options):
    result = invoke("evaluate", place / "run" / "adapter-inherited", *options)
    return result.exit_code, " ".join(result.output.split())


def edit(place, change):
    path = place / "run" / "adapter-inherited" / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def noted(place):
    return f"{100 * RunReport.load(place / 'run').results[0].test:.2f} %"


def test_the_adapters_own_backbone_is_taken_where_none_is_given(place):
    code, said = score(place, "--dataset", place / "task")
    assert code == 0 and said.startswith(noted(place)), said


def test_another_copy_of_the_same_weights_will_do(place):
    shutil.copytree(place / "vit", place / "copy")
    make_model().half().save_pretrained(place / "half")
    for name in ("copy", "half"):
        code, said = score(place, "--dataset", place / "task", "--model", place / name)
        assert code == 0 and said.startswith(noted(place)), said


def test_a_twin_of_the_same_shape_is_refused_with_both_names(made, place):
    make_model(seed=1).save_pretrained(place / "twin")
    code, said = score(place, "--dataset", place / "task", "--model", place / "twin")
    assert code == 2 and f"was trained on '{made}/vit', and '{place}/twin' is another backbone" in said


def test_the_adapters_own_backbone_with_other_weights_is_refused(place):
    edit(place, lambda config: config.update(base_model_name_or_path=str(place / "vit")))
    make_model(seed=1).save_pretrained(place / "vit")
    code, said = score(place, "--dataset", place / "task")
    assert code == 2 and "was made for other weights" in said


def test_an_older_adapter_is_scored_on_the_backbone_it_names_alone(made, place):
    edit(place, lambda config: config["backbone"].pop("fingerprint"))
    assert score(place, "--dataset", place / "task", "--model", made / "vit")[0] == 0
    shutil.copytree(place / "vit", place / "copy")
    code, said = score(place, "--dataset", place / "task", "--model", place / "copy")
    assert code == 2 and "the adapter has no fingerprint" in said and f"{made}/vit" in said and f"{place}/copy" in said


def write_classes(folder, names):
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    folder.mkdir()
    for seed, (name, number) in enumerate({"train": 12, "validation": 6, "test": 9}.items()):
        Dataset.from_dict(rows(number, 3, seed), features).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["class 0", "class 1", "other"], "classes gone: 'class 2', new: 'other'"),
        (["class 1", "class 0", "class 2"], "the same classes are in another order"),
        (["class 0", "class 1", "class 2", "more"], "classes new: 'more'"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_dataset_of_other_classes_is_refused(names, message, old, place, tmp_path):
    if old:  # its config has no names yet; the run's files have
        edit(place, lambda config: config.pop("label_names"))
    code, said = score(place, "--dataset", write_classes(tmp_path / "other", names))
    assert code == 2 and message in said, said


def test_the_bundled_backbone_is_found_wherever_the_package_is_installed(place):
    from peft_noah.data import bundled_backbone
    from peft_noah.run.saved_adapter import backbone_of

    moved = "/old/site-packages/peft_noah/assets/vit-tiny-64"
    assert backbone_of("adapter", moved, None) == str(bundled_backbone())


@pytest.mark.parametrize("adapter", ["adapter", "./adapter", "a/b/c", "~/adapter"])
def test_an_adapter_that_is_neither_a_folder_nor_a_hub_id_is_refused(adapter, place, monkeypatch):
    monkeypatch.chdir(place)
    result = invoke("evaluate", adapter, "--dataset", place / "task")
    assert result.exit_code == 2 and "does not exist, and it is no Hub id" in " ".join(result.output.split())


def test_an_adapter_is_found_from_the_home_folder(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    result = invoke("evaluate", "~/run/adapter-inherited", "--dataset", "~/task", "--model", "~/vit")
    assert result.exit_code == 0, result.output


def test_the_adapters_of_a_run_label_images_by_the_names_of_their_classes(place, tmp_path):
    PIL.Image.fromarray(rows(1)["image"][0]).save(tmp_path / "a.png")
    result = invoke("predict", place / "run" / "adapter-inherited", tmp_path / "a.png", "--top", 3)
    header, row = csv.reader(io.StringIO(result.stdout))
    assert result.exit_code == 0 and header[1::2] == ["label", "label_2", "label_3"]
    assert sorted(row[1::2]) == ["class 0", "class 1", "class 2"]


def test_images_are_prepared_as_the_adapter_was_trained(place, monkeypatch):
    """A run with --image-mean or --image-size is scored on other pixels than its backbone asks for."""
    processor = place / "run" / "adapter-inherited" / "preprocessor_config.json"
    saved = json.loads(processor.read_text())
    processor.write_text(json.dumps({**saved, "image_mean": [3.0] * 3, "size": {"height": 32, "width": 32}}))
    seen = []

    def evaluate(model, images, normalize, accelerator):
        seen.append((images.image_shape, normalize.mean.flatten().tolist()))
        return 0.5

    monkeypatch.setattr("peft_noah.run.evaluation.evaluate", evaluate)
    for options in ((), ("--image-mean", "1,1,1", "--image-size", "16")):
        code, said = score(place, "--dataset", place / "task", *options)
        assert code == 0, said
    assert seen == [((3, 32, 32), [3.0] * 3), ((3, 16, 16), [1.0] * 3)]
