"""Every road to and from disk: PEFT's, transformers', other precisions, wrong backbones, and folders of old versions."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, SIZES, make_model
from peft import (
    AutoPeftModel,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from peft_noah import Architecture, NoahConfig, __version__
from peft_noah.tuner.adapter_files import load_adapter
from peft_noah.tuner.layer import NoahLayer

ARCHITECTURE = Architecture(lora=[3, 0, 2, 1], adapter=[0, 2, 0, 1], vpt=[2, 3, 0, 0])
RECIPES = ("paper", "released")
OLD_FOLDERS = sorted(path.parent for path in Path(__file__).parents[1].glob("adapters/*/*/adapter_config.json"))


@torch.no_grad()
def outputs(model, pixels):
    found = model.eval()(pixel_values=pixels, output_hidden_states=True)
    return [found.logits, *found.hidden_states]


def make_vit(**changes):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**{**SIZES, "num_labels": 5, **changes})).eval()


def noah_layers(model):
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, NoahLayer)}


class Saved:
    """A trained-looking adapter on disk, its backbone on disk, and what they compute."""

    def __init__(self, folder, family, recipe, pixels):
        self.backbone, self.adapter, self.pixels = folder / "backbone", folder / "adapter", pixels
        make_model(family).save_pretrained(self.backbone)
        self.config = NoahConfig(recipe=recipe, architecture=ARCHITECTURE, init_weights=False)
        self.model = get_peft_model(self.base(), copy.deepcopy(self.config))
        with torch.no_grad():
            self.model.base_model.model.classifier.modules_to_save.default.weight.normal_()
        self.model.save_pretrained(self.adapter)
        self.expected = outputs(self.model, pixels)

    def base(self, **kwargs):
        return AutoModelForImageClassification.from_pretrained(self.backbone, **kwargs).eval()

    def adapter_file(self):
        return self.adapter / "adapter_model.safetensors"

    def check(self, model):
        for found, wanted in zip(outputs(model, self.pixels), self.expected, strict=True):
            assert torch.equal(found, wanted)
        layers = noah_layers(self.model)
        assert noah_layers(model).keys() == layers.keys()
        for name, layer in noah_layers(model).items():
            assert list(layer.drop_path_rates.values()) == list(layers[name].drop_path_rates.values())


@pytest.fixture(params=[(family, recipe) for family in FAMILIES for recipe in RECIPES], ids="-".join)
def saved(request, tmp_path, pixels):
    return Saved(tmp_path, *request.param, pixels)


@pytest.fixture
def saved_vit(tmp_path, pixels):
    return Saved(tmp_path, "vit", "paper", pixels)


# ---------------------------------------------------------------------- roads


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_peft_loads_what_it_saved_bit_for_bit(saved, low_cpu_mem_usage):
    saved.check(PeftModel.from_pretrained(saved.base(), saved.adapter, low_cpu_mem_usage=low_cpu_mem_usage))


def test_auto_peft_model_finds_the_backbone_by_itself(saved):
    saved.check(AutoPeftModel.from_pretrained(saved.adapter))


@pytest.mark.parametrize("options", [{}, {"adapter_name": "other"}, {"low_cpu_mem_usage": True}], ids=str)
def test_transformers_loads_the_adapter_into_its_own_model(saved, options):
    model = saved.base()
    info = model.load_adapter(saved.adapter, **options)
    assert not info.missing_keys and not info.unexpected_keys and not info.mismatched_keys
    saved.check(model)


def test_transformers_loads_backbone_and_adapter_from_the_adapter_folder(saved):
    saved.check(AutoModelForImageClassification.from_pretrained(saved.adapter))


def test_an_adapter_saved_by_transformers_is_loaded_by_peft(saved, tmp_path):
    model = saved.base()
    model.load_adapter(saved.adapter)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").exists()
    saved.check(PeftModel.from_pretrained(saved.base(), tmp_path / "again"))


def test_transformers_adds_a_new_adapter_that_trains_and_saves(saved, tmp_path):
    model = saved.base()
    model.add_adapter(copy.deepcopy(saved.config))
    layers = noah_layers(model)
    assert layers.keys() == noah_layers(saved.model).keys()
    model.train()(pixel_values=saved.pixels, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(p.grad is not None for layer in layers.values() for n, p in layer.named_parameters() if "noah_" in n)
    model.save_pretrained(tmp_path / "again")
    wanted = outputs(model, saved.pixels)
    loaded = outputs(PeftModel.from_pretrained(saved.base(), tmp_path / "again"), saved.pixels)
    assert all(torch.equal(a, b) for a, b in zip(loaded, wanted, strict=True))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("empty", ["kept", "dropped"])
def test_layers_without_weights_exist_where_layers_come_from_a_state_dict(saved, low_cpu_mem_usage, empty):
    state = {k.removeprefix("base_model.model."): v for k, v in load_file(saved.adapter_file()).items()}
    if empty == "dropped":  # as after a tool that leaves out tensors with no element
        state = {key: value for key, value in state.items() if value.numel()}
    model = saved.base()
    config = PeftConfig.from_pretrained(saved.adapter)
    inject_adapter_in_model(config, model, state_dict=state, low_cpu_mem_usage=low_cpu_mem_usage)
    set_peft_model_state_dict(model, state, low_cpu_mem_usage=low_cpu_mem_usage)
    saved.check(model)


def test_a_second_save_writes_the_same_files(saved, tmp_path):
    PeftModel.from_pretrained(saved.base(), saved.adapter).save_pretrained(tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved.adapter / name).read_bytes()


def test_a_loaded_adapter_is_frozen_unless_asked_otherwise(saved_vit):
    frozen = PeftModel.from_pretrained(saved_vit.base(), saved_vit.adapter)
    assert not any(p.requires_grad for p in frozen.parameters())
    trainable = PeftModel.from_pretrained(saved_vit.base(), saved_vit.adapter, is_trainable=True)
    wanted = {name for name, p in saved_vit.model.named_parameters() if p.requires_grad}
    assert {name for name, p in trainable.named_parameters() if p.requires_grad} == wanted


# ---------------------------------------------------------------------- files


def test_only_safetensors_are_written_and_nothing_is_unpickled(saved_vit, monkeypatch):
    assert {path.name for path in saved_vit.adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    saved_vit.check(PeftModel.from_pretrained(saved_vit.base(), saved_vit.adapter))


def test_the_config_file_states_version_backbone_and_everything_that_changes_outputs(saved_vit):
    config = json.loads((saved_vit.adapter / "adapter_config.json").read_text())
    assert config["noah_version"] == __version__ and config["peft_type"] == "NOAH"
    assert isinstance(config["backbone"].pop("fingerprint"), str)
    assert config["backbone"] == {"model_type": "vit", "num_blocks": 4, "width": 24}
    assert Architecture(config["architecture"]) == ARCHITECTURE
    assert [
        k for k in ("adapter_activation", "lora_scale", "vpt_position", "vpt_past_depth") if config[k] is None
    ] == []


def test_no_weight_of_the_backbone_is_saved(saved):
    keys = load_file(saved.adapter_file()).keys()
    assert [key for key in keys if ".noah_" not in key and ".classifier." not in key] == []


def test_saving_twice_adds_to_the_card_once_and_a_readme_of_something_else_is_left_alone(saved_vit, tmp_path):
    card = (saved_vit.adapter / "README.md").read_text()
    saved_vit.model.save_pretrained(saved_vit.adapter)
    assert (saved_vit.adapter / "README.md").read_text() == card and card.count("import peft_noah") == 1
    (tmp_path / "README.md").write_text("# My project\n")
    saved_vit.model.peft_config["default"].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project\n"


# ---------------------------------------------------------------------- precision


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_a_half_precision_backbone_trains_and_round_trips(dtype, autocast, recipe, tmp_path, pixels):
    config = NoahConfig(recipe=recipe, architecture=ARCHITECTURE, init_weights=False)
    model = get_peft_model(make_model().to(dtype), config, autocast_adapter_dtype=autocast)
    kind = torch.float32 if autocast else dtype
    assert {p.dtype for n, p in model.named_parameters() if ".noah_" in n} == {kind}
    model.train()(pixel_values=pixels.to(dtype), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model().to(dtype), tmp_path, autocast_adapter_dtype=autocast)
    wanted, found = outputs(model, pixels.to(dtype)), outputs(loaded, pixels.to(dtype))
    assert {tensor.dtype for tensor in found} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_model_stays_close_to_the_full_one(saved_vit, dtype):
    model = PeftModel.from_pretrained(saved_vit.base(dtype=dtype), saved_vit.adapter)
    found = outputs(model, saved_vit.pixels.to(dtype))[0].float()
    # 8 bits of mantissa in bfloat16, 11 in float16, on logits of about 5
    torch.testing.assert_close(found, saved_vit.expected[0], atol=0.15 if dtype is torch.bfloat16 else 0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_transformers_loads_into_a_half_precision_model(saved_vit, dtype):
    model = saved_vit.base(dtype=dtype)
    model.load_adapter(saved_vit.adapter)
    assert {tensor.dtype for tensor in outputs(model, saved_vit.pixels.to(dtype))} == {dtype}


# ---------------------------------------------------------------------- wrong backbones

ROADS = {
    "peft": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "peft, low_cpu_mem_usage": lambda model, folder: PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True),
    "transformers": lambda model, folder: model.load_adapter(folder),
    "peft_noah.tuner.adapter_files": load_adapter,
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 12}, "made for a backbone with width 24, but this model has width 12"),
        ({"num_hidden_layers": 3}, "row 'adapter' has 4 dims but this model has 3 blocks"),
    ],
    ids=str,
)
def test_another_width_or_number_of_blocks_names_both_and_leaves_the_model_alone(saved_vit, road, changes, message):
    model = make_vit(**changes)
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        ROADS[road](model, saved_vit.adapter)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_another_family_is_named(saved_vit):
    with pytest.raises(ValueError, match="backbone with model_type vit, but this model has model_type dinov2"):
        PeftModel.from_pretrained(make_model("dinov2"), saved_vit.adapter)


@pytest.mark.parametrize("road", ["peft", "peft, low_cpu_mem_usage", "peft_noah.tuner.adapter_files"])
def test_another_head_size_names_both_sizes(saved_vit, road):
    with pytest.raises((RuntimeError, ValueError), match=r"classifier.*\[5, 24\].*\[7, 24\]"):
        ROADS[road](make_vit(num_labels=7), saved_vit.adapter)


def test_another_head_size_names_both_sizes_in_transformers_report(saved_vit, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            make_vit(num_labels=7).load_adapter(saved_vit.adapter)
    finally:
        logging.disable_propagation()
    assert "[5, 24]" in caplog.text and "[7, 24]" in caplog.text


@pytest.mark.parametrize("road", ROADS)
def test_a_backbone_without_classifier_says_so(saved_vit, road):
    with pytest.warns(UserWarning, match="'classifier' is empty .num_labels=0."):
        ROADS[road](make_vit(num_labels=0), saved_vit.adapter)


def test_a_file_cut_short_is_named(saved_vit):
    saved_vit.adapter_file().write_bytes(saved_vit.adapter_file().read_bytes()[:-50])
    with pytest.raises(ValueError, match="cut short"):
        load_adapter(saved_vit.base(), saved_vit.adapter)


# ---------------------------------------------------------------------- old versions


def test_there_are_folders_of_old_versions():
    assert {path.name for path in OLD_FOLDERS} == set(RECIPES)
    assert "v0.1.0" in {path.parent.name for path in OLD_FOLDERS}


@pytest.mark.parametrize("folder", OLD_FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
@pytest.mark.parametrize("road", ROADS)
def test_an_adapter_of_an_old_version_still_computes_the_same(folder, road):
    model = AutoModelForImageClassification.from_pretrained(folder.parent / "backbone").eval()
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        plain = model(pixel_values=expected["pixel_values"]).logits
        loaded = ROADS[road](model, folder)
        adapted = loaded if isinstance(loaded, PeftModel) else model
        found = adapted.eval()(pixel_values=expected["pixel_values"]).logits
    assert not torch.allclose(plain, expected["logits"], atol=0.1)
    torch.testing.assert_close(found, expected["logits"])  # other versions of torch sum in another order
