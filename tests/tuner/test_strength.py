"""How strong an adapter's updates are: factors that belong to a design and are saved with it."""

import json

import pytest
import torch
from conftest import make_model
from peft import PeftModel, get_peft_model

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
