"""A backbone is loaded whole, or it is said what its folder holds instead."""

import json

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig

from peft_noah.data.preprocessing import Preprocessing
from peft_noah.run.context import read_splits
from peft_noah.run.models import load_classifier
from peft_noah.run.settings import RunSettings

NAMES = ("cat", "dog")


@pytest.fixture
def vit_folder(tmp_path):
    make_model().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        load_classifier(folder, NAMES, Preprocessing.from_backbone(folder))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_only_the_classifier_is_made_anew(vit_folder):
    change_weights(vit_folder, lambda weights: {k: v for k, v in weights.items() if not k.startswith("classifier")})
    assert load_classifier(vit_folder, NAMES, Preprocessing.from_backbone(vit_folder)).classifier.weight.shape == (
        2,
        24,
    )


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda weights: {f"timm.{k}": v for k, v in weights.items()}, "[0-9]+ are missing"),
        (lambda weights: {k: v for k, v in weights.items() if "query.weight" not in k}, "4 are missing"),
        (
            lambda weights: {**weights, "vit.layernorm.weight": torch.ones(7)},
            "1 are missing or of another shape, such as",
        ),
    ],
)
def test_random_weights_never_stand_for_those_of_the_backbone(vit_folder, change, missing):
    change_weights(vit_folder, change)
    refused(vit_folder, f"are not those of the model in its config.json: {missing}")


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", None],
    ids=["pointer", "cut"],
)
def test_weights_that_are_damaged_are_refused(vit_folder, content):
    path = vit_folder / "model.safetensors"
    path.write_bytes(content or path.read_bytes()[:-100])
    refused(vit_folder, "weights of .*vit cannot be read: .*download them again")


def test_pickled_weights_are_named(vit_folder):
    (vit_folder / "model.safetensors").rename(vit_folder / "pytorch_model.bin")
    refused(vit_folder, "holds its weights as a pickle, pytorch_model.bin, .* save_pretrained")


@pytest.mark.parametrize(
    ("file", "config", "message"),
    [
        ("adapter_config.json", {"peft_type": "NOAH"}, "it holds an adapter, and not the backbone that"),
        (
            "config.json",
            {"architecture": "vit_tiny_patch16_224"},
            "it holds a model of timm, which is read where timm",
        ),
        ("notes.json", {}, "Unrecognized model"),
    ],
)
def test_a_folder_of_another_kind_is_named(tmp_path, file, config, message):
    (tmp_path / file).write_text(json.dumps(config))
    refused(tmp_path, f"cannot read config.json in .*: {message}")


def test_an_unknown_family_is_named_before_its_image_size_is_asked_for(tmp_path):
    ResNetConfig().save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="no sites known for model_type 'resnet'"):
        read_splits(RunSettings(model=str(tmp_path / "resnet")))
