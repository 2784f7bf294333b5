"""Models of text: each family's real class, tiny and random, with every prompt module that it has a place for."""

import random

import pytest
import torch
from peft import PeftModel, get_peft_model
from text_models import DECODERS, ENCODERS, batch, make_text_model

from peft_noah import NoahConfig, search
from peft_noah.searching.result import SearchSettings
from peft_noah.tuner.backbones import find_backbone


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def supernet(family, kind="sequence", **options):
    model = make_text_model(family, kind).double()
    config = NoahConfig(search_space="vtab", init_weights=False, **options)
    return get_peft_model(model, config, autocast_adapter_dtype=False).double().eval()


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_subnets_of_a_text_model_train_and_are_cut_out_saved_loaded_and_searched(family, tmp_path):
    model, inputs = supernet(family), batch(7, 4)
    space, plain = model.get_search_space(), logits(make_text_model(family).double(), inputs)
    assert set(space.dims) == {"lora", "adapter", *({"vpt"} if find_backbone(family).no_tokens is None else ())}
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


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_a_padded_text_has_the_outputs_of_the_text_alone(family):
    for kind in ("sequence",) if family == "gemma3_text" else ("sequence", "token"):  # it has no classifier of tokens
        model, padded = supernet(family, kind), batch(9, 5, 1)
        both = logits(model, padded)
        for row, length in enumerate((9, 5, 1)):
            alone = {key: value[row : row + 1, :length] for key, value in padded.items()}
            expected = logits(model, alone)[0]
            found = both[row] if kind == "sequence" else both[row, :length]
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "llama", "gemma2"])
def test_modules_on_every_site_of_a_text_model_merge_and_leave_the_outputs(family):
    model, inputs = make_text_model(family).double(), batch(6, 3)
    architecture = {"lora": [2] * 3}
    if family in ("bert", "deberta-v2"):  # the others' Linears have no bias that could take up theirs
        architecture |= {"ssf": [1] * 3, "bitfit": [1] * 3}
    config = NoahConfig(architecture=architecture, target_modules="all-linear", init_weights=False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).double().eval()
    expected = logits(adapted, inputs)
    assert not torch.allclose(expected, logits(make_text_model(family).double(), inputs))
    torch.testing.assert_close(logits(adapted.merge_and_unload(), inputs), expected)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_generates_with_a_cache_what_it_generates_without(family):
    model = make_text_model(family, "causal").double()
    plain = model.generate(**batch(5), max_new_tokens=6, do_sample=False)
    rows = {"lora": [3, 0, 3], "adapter": [0, 2, 2], "prefix": [2, 0, 4]}
    config = NoahConfig(architecture=rows, init_weights=False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).double().eval()
    found = {}
    for cached in (True, False):
        options = {"max_new_tokens": 6, "do_sample": False, "use_cache": cached, "output_logits": True}
        found[cached] = adapted.generate(**batch(5), **options, return_dict_in_generate=True)
    assert torch.equal(found[True].sequences, found[False].sequences)
    torch.testing.assert_close(found[True].logits, found[False].logits)
    with torch.no_grad():
        whole = adapted(input_ids=found[True].sequences).logits[:, 4:-1]
    torch.testing.assert_close(
        torch.stack(found[True].logits, 1).double(), whole.float().double(), atol=1e-5, rtol=1e-5
    )
    with adapted.disable_adapter():
        assert torch.equal(adapted.generate(**batch(5), max_new_tokens=6, do_sample=False), plain)
