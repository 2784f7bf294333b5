"""How strong an adapter's updates are: factors that belong to a design and are saved with it."""

import json

import pytest
import torch
from conftest import make_model
from families import FAMILIES, WIDTH
from peft import PeftModel, get_peft_model
from torch import nn

from peft_noah import Architecture, NoahConfig


def build(**options):
    torch.manual_seed(0)
    options = {"architecture": Architecture.uniform(4, adapter=3), "init_weights": False, **options}
    return get_peft_model(make_model(), NoahConfig(**options)).eval()


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_adapter_scale_is_the_factor_of_the_adapters_update_in_any_recipe(recipe):
    model = build(recipe=recipe, adapter_scale=4.0)
    layer, x = model.base_model.model.vit.layers[0].mlp.fc2, torch.randn(2, 5, 48)
    plain = layer.base_layer(x)
    update = layer(x) - plain
    assert NoahConfig(recipe=recipe).adapter_scale == 1.0
    layer.noah_adapter["default"].scale = 1.0
    torch.testing.assert_close(update, 4.0 * (layer(x) - plain))


def test_it_is_saved_said_in_the_card_and_1_where_an_older_adapter_does_not_say(pixels, tmp_path):
    model = build(adapter_scale=2.5, lora_scale=0.5)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    assert loaded.peft_config["default"].adapter_scale == 2.5
    assert torch.equal(loaded(pixel_values=pixels).logits, expected)
    assert "Factors of the updates: `lora_scale` 0.5, `adapter_scale` 2.5." in (tmp_path / "README.md").read_text()
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    del settings["adapter_scale"]
    path.write_text(json.dumps(settings))
    assert PeftModel.from_pretrained(make_model(), tmp_path).peft_config["default"].adapter_scale == 1.0


def test_a_card_of_factors_1_does_not_speak_of_them(tmp_path):
    build().save_pretrained(tmp_path)
    assert "Factors of the updates" not in (tmp_path / "README.md").read_text()


def test_extraction_keeps_it(pixels):
    model = build(adapter_scale=3.0)
    assert torch.equal(model.extract()(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "strong", True, 10**400])
def test_what_is_no_factor_is_refused(value):
    with pytest.raises(ValueError, match="adapter_scale is"):
        NoahConfig(adapter_scale=value)


# ---------------------------------------------------------------------- relative to the backbone's width


@pytest.mark.parametrize(
    ("family", "width"),
    [
        ("vit", WIDTH),
        ("dinov2", WIDTH),
        ("swin", 2 * WIDTH),
    ],  # a Swin of one block with WIDTH and two of twice as much
)
def test_a_strength_becomes_a_scale_in_inverse_proportion_to_the_width(family, width):
    config = NoahConfig(architecture=None, search_space="wide", lora_strength=0.5)
    assert config.lora_scale is None  # it is the model that decides
    model = get_peft_model(FAMILIES[family](), config)
    assert model.peft_config["default"].lora_scale == 0.5 * 1536 / width
    scales = {module.scale for module in model.modules() if getattr(module, "name", None) == "lora"}
    assert scales == {0.5 * 1536 / width}


def test_the_wide_space_has_strength_1_unless_another_is_given():
    assert NoahConfig(search_space="wide").lora_strength == 1.0
    assert NoahConfig(search_space="wide", lora_scale=2.0).lora_strength is None
    assert NoahConfig(search_space="vtab").lora_scale == 1.0


def test_an_adapter_is_saved_with_the_scale_that_its_strength_was(pixels, tmp_path):
    model = build(architecture=Architecture.uniform(4, lora=2), lora_strength=0.25)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["lora_scale"] == 0.25 * 1536 / 24 and "lora_strength" not in settings
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_a_config_that_has_met_no_model_keeps_its_strength_when_it_is_copied_or_saved(tmp_path):
    config = NoahConfig(lora_strength=2.0)
    assert NoahConfig(**config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    assert NoahConfig.from_pretrained(tmp_path).lora_strength == 2.0


def test_a_strength_beside_a_scale_or_without_a_width_is_refused():
    with pytest.raises(ValueError, match="lora_strength decides lora_scale: give one of the two"):
        NoahConfig(lora_strength=1.0, lora_scale=1.0)
    with pytest.raises(ValueError, match="lora_strength is nan"):
        NoahConfig(lora_strength=float("nan"))
    config = NoahConfig(architecture={"lora": [1]}, target_modules=["0"], lora_strength=1.0)
    with pytest.raises(ValueError, match="lora_strength needs the width of the blocks"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), config)
