"""NOAH on a backbone whose Linears are quantised: it trains, saves, loads and extracts; merging says why not."""

import copy

import pytest
import torch
from conftest import make_model
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageClassification

from peft_noah import Architecture, NoahConfig
from peft_noah.tuner.layer import is_quantised

ARCHITECTURE = Architecture(lora=[3, 0, 2, 1], adapter=[0, 2, 0, 1], vpt=[2, 3, 0, 0])
LABELS = torch.tensor([0, 1, 2])
RECIPES = ("paper", "released")


def through_transformers(folder):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    quantisation = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["classifier"])
    return AutoModelForImageClassification.from_pretrained(folder, quantization_config=quantisation)


def through_quantize(folder):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = AutoModelForImageClassification.from_pretrained(folder)
    quantize_(
        model, Int8WeightOnlyConfig(), filter_fn=lambda m, name: isinstance(m, nn.Linear) and "classifier" not in name
    )
    return model


def bitsandbytes_8bit(folder):
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
    return AutoModelForImageClassification.from_pretrained(folder, quantization_config=quantisation)


ROADS = {
    "TorchAoConfig": ("torchao", through_transformers),
    "quantize_": ("torchao", through_quantize),
    "bitsandbytes": ("bitsandbytes", bitsandbytes_8bit),
}


@pytest.fixture(params=ROADS)
def quantised(request, tmp_path):
    library, build = ROADS[request.param]
    pytest.importorskip(library, reason=f"{library} is not installed, or cannot be on this machine")
    make_model().save_pretrained(tmp_path / "backbone")
    model = build(tmp_path / "backbone")
    assert is_quantised(model.vit.layers[0].attention.q_proj) and is_quantised(model.vit.layers[0].mlp.fc2)
    return lambda: build(tmp_path / "backbone")


@torch.no_grad()
def logits(model, pixels):
    return model.eval()(pixel_values=pixels).logits


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_three_modules_train_and_the_adapter_round_trips(quantised, recipe, pixels, tmp_path):
    config = NoahConfig(recipe=recipe, architecture=ARCHITECTURE, init_weights=False, dropout=0.0, drop_path=0.0)
    model = get_peft_model(quantised(), config).train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = model(pixel_values=pixels, labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, p in trainable.items() if p.numel() and torch.equal(p, before[name])] == []
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantised(), tmp_path / "adapter")
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


def test_a_supernet_samples_extracts_and_unloads(quantised, pixels):
    model = get_peft_model(quantised(), NoahConfig(init_weights=False))
    model.set_architecture(Architecture(lora=[5, 1, 0, 0], adapter=[5, 0, 0, 0], vpt=[5, 1, 0, 0]))
    assert torch.equal(logits(model.extract(), pixels), logits(model, pixels))
    plain = quantised()
    assert not torch.equal(logits(model, pixels), logits(plain, pixels))
    assert torch.equal(logits(model.unload(), pixels), logits(plain, pixels))


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_into_quantised_weights_is_refused_before_anything_changed(quantised, safe_merge, pixels):
    model = get_peft_model(quantised(), NoahConfig(architecture={"lora": [2] * 4}, init_weights=False))
    expected = logits(model, pixels)
    for merge in (model.merge_and_unload, model.base_model.merge_adapter):
        with pytest.raises(ValueError, match=r"attention.*_proj' is quantised .*merge it on the backbone"):
            merge(safe_merge=safe_merge)
    assert torch.equal(logits(model, pixels), expected)


def test_a_packed_weight_is_refused_whatever_packed_it():
    packed = nn.Linear(4, 4)
    packed.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)  # as bitsandbytes' 4 bits
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4), packed), NoahConfig(target_modules=["0", "1"]))
    before = copy.deepcopy(model.base_model.model[0].get_base_layer().weight)
    with pytest.raises(ValueError, match="'1' is quantised"):
        model.merge_and_unload()
    assert torch.equal(model.base_model.model[0].get_base_layer().weight, before)
