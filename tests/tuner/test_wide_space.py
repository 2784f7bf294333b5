"""A supernet over the wide search space: what a model of the family can carry of it, trained, searched and cut out."""

import random

import pytest
import torch
from conftest import make_model
from peft import get_peft_model
from transformers import Dinov2Config, Dinov2ForImageClassification

from peft_noah import NoahConfig, SearchSpace, search
from peft_noah.fast import fast_forward


def build(family="vit", **options):
    return get_peft_model(make_model(family), NoahConfig(search_space="wide", init_weights=False, **options))


@pytest.mark.parametrize("family", ["vit", "dinov2"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_supernet_of_it_trains_is_searched_and_cut_out(family, recipe, pixels):
    model, rng = build(family, recipe=recipe), random.Random(0)
    assert model.get_search_space() == SearchSpace.wide(4)
    with fast_forward(model) as fast:
        for _ in range(3):
            model.set_architecture(model.get_search_space().sample(rng))
            model(pixel_values=pixels).logits.square().sum().backward()
            assert fast.reason is None
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()

    @torch.no_grad()
    def score(architecture):
        model.set_architecture(architecture)
        return float(-model(pixel_values=pixels).logits.square().mean())

    best = search(model.get_search_space(), score, model.count_parameters, budget=12_000).best.architecture
    model.set_architecture(best)
    assert torch.equal(model.extract()(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_no_architecture_of_it_is_empty(pixels):
    model = build().eval()
    model.set_architecture(model.get_search_space().smallest())
    assert model.extract().get_architecture()["lora_fc1"] == (1,) * 4


def test_it_holds_what_the_model_can_carry():
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=8, use_swiglu_ffn=True
    )
    gated = get_peft_model(Dinov2ForImageClassification(config), NoahConfig(search_space="wide"))
    assert gated.get_search_space() == SearchSpace.wide(2)
    largest = SearchSpace.wide(4).largest()
    model = get_peft_model(make_model(), NoahConfig(search_space="wide", architecture=largest))
    assert model.get_search_space() == SearchSpace.wide(4)
