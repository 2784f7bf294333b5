"""An adapter keeps the names of its classes, so that whoever loads it knows what its logits mean."""

import json

import pytest
import torch
from conftest import FAMILIES, SIZES, make_model
from peft import PeftModel, get_peft_model
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from peft_noah import Architecture, NoahConfig

NAMES = ["cat", "dog", "röntgen\n'x'", "cat", ""]


def named_vit():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES, id2label=dict(enumerate(NAMES))))


def saved_names(model, folder, **options):
    get_peft_model(model, NoahConfig(**options)).save_pretrained(folder)
    return json.loads((folder / "adapter_config.json").read_text())["label_names"]


@pytest.mark.parametrize("options", [{}, {"architecture": Architecture.uniform(4, lora=1)}])
def test_the_names_of_the_models_classes_are_saved_in_the_order_of_the_logits(options, tmp_path):
    assert saved_names(named_vit(), tmp_path, **options) == NAMES
    assert NoahConfig.from_pretrained(tmp_path).label_names == NAMES


@pytest.mark.parametrize("family", FAMILIES)
def test_names_that_nobody_gave_are_not_saved(family, tmp_path):
    assert saved_names(make_model(family), tmp_path) is None


def test_a_model_without_classes_has_none(tmp_path):
    assert saved_names(ViTModel(ViTConfig(**SIZES)), tmp_path) is None


def test_names_given_by_the_user_stay(tmp_path):
    assert saved_names(named_vit(), tmp_path, label_names=list("abcde")) == list("abcde")


def test_an_extracted_subnet_keeps_them(tmp_path):
    model = get_peft_model(named_vit(), NoahConfig())
    model.extract(Architecture.uniform(4, lora=1)).save_pretrained(tmp_path)
    assert NoahConfig.from_pretrained(tmp_path).label_names == NAMES


def test_an_adapter_keeps_its_own_names_on_a_backbone_with_others(tmp_path):
    saved_names(named_vit(), tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    assert loaded.peft_config["default"].label_names == NAMES


def test_an_adapter_saved_without_names_takes_none_from_the_model_it_is_loaded_on(tmp_path):
    saved_names(make_model(), tmp_path)
    loaded = PeftModel.from_pretrained(named_vit(), tmp_path)
    assert loaded.peft_config["default"].label_names is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat", "label_names is 'cat'; give a list"),
        ([], "names of 1 to 100,000 classes"),
        ({"0": "cat"}, "give a list"),
        (["a"] * 100_001, "names of 1 to 100,000 classes"),
        (["cat", 1], "label_names has 1; the name of a class is a text"),
        (["c" * 10_001], "at most 10,000 letters"),
    ],
)
def test_names_that_cannot_be_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        NoahConfig(label_names=names)
