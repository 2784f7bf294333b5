"""A backbone is known again in any precision, and told from a twin of the same shape."""

import copy
import json
import warnings

import pytest
import torch
from conftest import FAMILIES, make_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from peft_noah import Architecture, NoahConfig
from peft_noah.tuner.adapter_files import load_adapter
from peft_noah.tuner.fingerprint import OtherBackboneWarning, fingerprint_backbone, same_backbone

ARCHITECTURE = Architecture.uniform(4, lora=2, adapter=1, vpt=1)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    get_peft_model(make_model(family), NoahConfig(architecture=ARCHITECTURE)).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def load_quietly(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBackboneWarning)
        return PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_copy_in_any_precision_is_the_same_model(dtype, family, folder):
    load_quietly(make_model(family).to(dtype), folder)
    load_adapter(make_model(family).to(dtype), folder)
    half = fingerprint_backbone(make_model(family).to(dtype))
    assert same_backbone(half, fingerprint_backbone(make_model(family).bfloat16()))


def test_a_new_classifier_changes_nothing(family, folder):
    model = make_model(family)
    nn.init.normal_(model.classifier.weight)
    load_quietly(model, folder)


def test_a_twin_is_warned_of_as_peft_loads_and_refused_by_our_own_reader(family, folder):
    with pytest.warns(OtherBackboneWarning, match="made for other weights: the model at hand has the shape"):
        PeftModel.from_pretrained(make_model(family, seed=1), folder)
    with pytest.raises(ValueError, match="cannot be used: this adapter was made for other weights"):
        load_adapter(make_model(family, seed=1), folder)


def test_each_tensor_is_looked_at(family):
    model = make_model(family)
    before = fingerprint_backbone(model)
    for name, parameter in model.base_model.named_parameters():
        kept = parameter.detach().clone()
        parameter.data.mul_(1.02).add_(0.01)
        assert not same_backbone(before, fingerprint_backbone(model)), name
        parameter.data.copy_(kept)
    assert fingerprint_backbone(model) == before


def test_quantised_matrices_are_not_compared(family, folder):
    model = make_model(family)
    for linear in [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]:
        linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    known = json.loads((folder / "adapter_config.json").read_text())["backbone"]["fingerprint"]
    assert same_backbone(known, fingerprint_backbone(model))
    assert not same_backbone(known, fingerprint_backbone(make_model(family, seed=1)))


def test_adapters_on_the_model_do_not_change_it(family, folder):
    plain = fingerprint_backbone(make_model(family))
    model = get_peft_model(make_model(family), NoahConfig(architecture=ARCHITECTURE, init_weights=False))
    assert fingerprint_backbone(model.base_model.model) == plain
    with_lora = get_peft_model(make_model(family), LoraConfig(target_modules="all-linear", r=2))
    assert fingerprint_backbone(with_lora.base_model.model) == plain
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBackboneWarning)
        model.load_adapter(folder, "second")


def test_an_adapter_of_an_old_version_has_none_and_stays_without(family, folder, tmp_path):
    edit(folder, lambda config: config["backbone"].pop("fingerprint"))
    model = load_quietly(make_model(family, seed=1), folder)
    model.save_pretrained(tmp_path / "again")
    assert "fingerprint" not in json.loads((tmp_path / "again" / "adapter_config.json").read_text())["backbone"]


def test_what_is_loaded_keeps_the_fingerprint_of_the_model_it_was_made_for(family, folder, tmp_path):
    first = json.loads((folder / "adapter_config.json").read_text())["backbone"]
    load_quietly(make_model(family).bfloat16(), folder).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["backbone"] == first


@pytest.mark.parametrize("value", ["%", "abc", "AAAA", 5, [1]])
def test_a_fingerprint_that_is_none_is_an_error(value, family, folder):
    edit(folder, lambda config: config["backbone"].update(fingerprint=value))
    with pytest.raises(ValueError, match="fingerprint cannot be read"):
        PeftModel.from_pretrained(make_model(family), folder)


def test_a_model_without_weights_in_memory_has_none(family):
    assert fingerprint_backbone(copy.deepcopy(make_model(family)).to("meta")) is None
