"""What a run cannot use is refused in one sentence, before anything is written."""

import pytest
from conftest import SIZES
from datasets import Dataset, Image
from tiny_runs import invoke, refused, write_task
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from peft_noah import BudgetError
from peft_noah.run.context import RunContext
from peft_noah.run.methods import SUPERNET
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import do_stages


def test_an_unknown_family_is_refused(task, tmp_path):
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ResNetForImageClassification(resnet).save_pretrained(tmp_path / "resnet")
    message = "no sites known for model_type 'resnet'"
    arguments = ("run", "--strategy", "noah", "--model", tmp_path / "resnet", "--dataset", task)
    refused(*arguments, folder=tmp_path / "run", message=message)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({"num_channels": 1}, 16, "the backbone reads images of 1 channels"),
        ({}, 4, "images of 4 x 4 pixels are smaller than one of its patches"),
        ({}, 20, "images of 20 x 20 pixels are not filled by its patches of 8 x 8"),
    ],
)
def test_images_that_the_backbone_does_not_take_are_refused(task, tmp_path, config, size, message):
    model = ViTForImageClassification(ViTConfig(**{**SIZES, **config}))
    model.save_pretrained(tmp_path / "vit")
    arguments = ("run", "--strategy", "noah", "--model", tmp_path / "vit", "--dataset", task, "--image-size", size)
    refused(*arguments, folder=tmp_path / "run", message=message)


def test_a_missing_model_folder_is_refused(task, tmp_path):
    message = "model folder .* does not exist"
    arguments = ("run", "--strategy", "noah", "--model", tmp_path / "none", "--dataset", task)
    refused(*arguments, folder=tmp_path / "run", message=message)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"classes": 1}, "class"),
        ({"train": 0}, "train"),
    ],
)
def test_a_dataset_with_a_split_or_classes_missing_is_refused(splits, message, backbone, tmp_path):
    task = write_task(tmp_path / "task", **splits)
    refused(
        "run", "--strategy", "noah", "--model", backbone, "--dataset", task, folder=tmp_path / "run", message=message
    )


def test_a_missing_label_column_is_named(task, backbone, tmp_path):
    arguments = ("run", "--strategy", "noah", "--model", backbone, "--dataset", task, "--label-column", "fine_label")
    refused(*arguments, folder=tmp_path / "run", message="fine_label.*label")


def test_a_corrupt_image_is_named_with_its_index(backbone, tmp_path):
    task = write_task(tmp_path / "task")
    table = Dataset.from_parquet(str(task / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    broken = table.cast_column("image", Image(decode=False)).to_list()
    broken[7]["image"]["bytes"] = broken[7]["image"]["bytes"][:40]
    Dataset.from_list(broken, table.features).to_parquet(task / "train.parquet")
    refused("run", "--strategy", "noah", "--model", backbone, "--dataset", task, folder=tmp_path / "run", message="7")


def test_a_budget_below_the_smallest_says_what_would_fit(task, backbone, tmp_path):
    arguments = ("run", "--strategy", "noah", "--model", backbone, "--dataset", task, "--budget", "10")
    refused(
        *arguments, folder=tmp_path / "run", message="no architecture fits a budget of 10 parameters: the smallest"
    )
    with pytest.raises(BudgetError):
        do_stages(
            RunContext(
                tmp_path / "run", RunSettings(model=str(backbone), dataset=str(task), strategy="noah", budget=10)
            ),
            SUPERNET,
        )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--recipe", "best", "recipe must be one of paper, released"),
        ("--search-space", "huge", "search_space must be one of"),
        ("--variant", "x", "no search variant is named 'x'"),
        ("--epochs", "-1", "epochs is -1; give a whole number from 1"),
        ("--baselines", "lora,magic", "baseline 'magic' is not known"),
        ("--baselines", "magic", "a design is named by its JSON file"),
        ("--image-mean", "0.5", "image_mean must be three numbers"),
        ("--mixed-precision", "int4", "mixed_precision must be one of"),
    ],
)
def test_a_setting_out_of_range_is_refused(option, value, message, task, backbone, tmp_path):
    arguments = ("run", "--strategy", "noah", "--model", backbone, "--dataset", task, option, value)
    refused(*arguments, folder=tmp_path / "run", message=message)


def test_a_folder_that_is_not_a_run_is_left_alone(task, backbone, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = invoke("run", "--strategy", "noah", "--model", backbone, "--dataset", task, "--output", tmp_path)
    assert result.exit_code == 2 and "is not empty and holds no run" in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epochs", "epochs is 0; give a whole number from 1"),
        ("supernet-epochs", "epochs is 0; give a whole number from 1"),
        ("population-size", "population_size is 0"),
        ("generations", "generations is 0"),
    ],
)
def test_a_zero_is_refused_and_not_taken_for_a_default(name, message, tmp_path):
    result = invoke("supernet", f"--{name}", 0, "--output", tmp_path / "run")
    assert result.exit_code == 2 and f"error: {message}" in result.output and not (tmp_path / "run").exists()


def test_further_sets_are_named(task, backbone, tmp_path):
    arguments = ("run", "--strategy", "noah", "--model", backbone, "--dataset", task, "--other-test", "far")
    refused(*arguments, folder=tmp_path / "run", message="other_test must be NAME=SOURCE, got 'far'")
