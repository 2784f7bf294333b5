"""Models of text: each family's real class, tiny and random, with every prompt module that it has a place for."""

import random

import pytest
import torch
from peft import PeftModel, get_peft_model
from text_models import ENCODERS, batch, make_text_model

from peft_noah import NoahConfig, search
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.result import SearchSettings


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def supernet(family, kind="sequence", **options):
    model = make_text_model(family, kind).double()
    config = NoahConfig(search_space="vtab", init_weights=False, **options)
    return get_peft_model(model, config, autocast_adapter_dtype=False).double().eval()


@pytest.mark.parametrize("family", ENCODERS)
def test_subnets_of_a_text_model_train_and_are_cut_out_saved_loaded_and_searched(family, tmp_path):
    model, inputs = supernet(family), batch(7, 4)
    space, plain = model.get_search_space(), logits(make_text_model(family).double(), inputs)
    assert set(space.dims) == {"lora", "adapter", "vpt"}
    for row in space.dims:  # each module alone changes the outputs
        model.set_architecture({row: [space.dims[row][-1]] * 3})
        assert not torch.allclose(logits(model, inputs), plain)
    architecture = space.sample(random.Random(0))
    model.set_architecture(architecture)
    model.train()(**inputs).logits.square().sum().backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained
    expected = logits(model.eval(), inputs)
    subnet = model.extract()
    assert torch.equal(logits(subnet, inputs), expected)
    assert subnet.count_parameters() == model.count_parameters()
    subnet.save_pretrained(tmp_path)
    loaded = (
        PeftModel.from_pretrained(make_text_model(family).double(), tmp_path, autocast_adapter_dtype=False)
        .double()
        .eval()
    )
    assert torch.equal(logits(loaded, inputs), expected) and loaded.get_architecture() == architecture

    def score(candidate):
        model.set_architecture(candidate)
        return float(logits(model, inputs)[0].softmax(-1)[0])

    found = search(space, score, model.count_parameters, 10**6, SearchSettings(4, 2, 2, 1, 1))
    assert found.best.score == max(one.score for one in found.candidates)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_padded_text_has_the_outputs_of_the_text_alone(family):
    for kind in ("sequence", "token"):
        model, padded = supernet(family, kind), batch(9, 5, 1)
        both = logits(model, padded)
        for row, length in enumerate((9, 5, 1)):
            alone = {key: value[row : row + 1, :length] for key, value in padded.items()}
            expected = logits(model, alone)[0]
            found = both[row] if kind == "sequence" else both[row, :length]
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", ENCODERS)
def test_the_designs_of_a_race_fit_a_text_model(family):
    for design in PORTFOLIO:
        model = make_text_model(family)
        dims = {row: dim for row, dim in design.architecture(3).items()}
        adapted = get_peft_model(model, NoahConfig(architecture=dims, **design.options))
        linears = {name.split(".")[-1] for name, _ in adapted.base_model.noah_layers()}
        assert adapted.count_parameters() and linears
