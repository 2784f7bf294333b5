"""Batches in which each sample has an adapter of its own."""

import pytest
import torch
from peft.utils import AuxiliaryTrainingWrapper
from variants import ROWS, VARIANTS, build, fit, make_config, outputs, uniform

from peft_noah import NoahConfig

on_all = pytest.mark.parametrize("variant", VARIANTS)


def two_adapters(variant, **other):
    _, model = build(variant)
    model.add_adapter("second", make_config(variant, **other))
    return fit(model, variant)


def expected_rows(model, variant, names):
    rows = []
    for index, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(outputs(model, variant)[index])
            continue
        model.set_adapter(name)
        rows.append(outputs(model, variant)[index])
    return torch.stack(rows)


@on_all
def test_each_sample_of_a_mixed_batch_gets_its_own_adapter(variant):
    model = two_adapters(variant)
    has_tokens = "vpt" in ROWS.get(variant.partition("-")[0], {})
    names = ["second", "default", "second" if has_tokens else "__base__"]
    mixed = outputs(model, variant, adapter_names=names)
    # batches of another size sum in another order
    torch.testing.assert_close(mixed, expected_rows(model, variant, names))
    assert not torch.allclose(mixed, outputs(model, variant))
    assert all(m.batch_adapters is None for m in model.modules() if hasattr(m, "batch_adapters"))
    assert not any(m._forward_pre_hooks for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper))


def test_a_mixed_batch_may_mix_architectures_and_classifiers():
    _, model = build("lora")
    model.add_adapter("second", NoahConfig(architecture=uniform(adapter=5), modules_to_save=[], init_weights=False))
    model.eval()
    names = ["second", "__base__", "default"]
    mixed = outputs(model, "lora", adapter_names=names)
    torch.testing.assert_close(mixed, expected_rows(model, "lora", names))


def test_a_mixed_batch_of_base_samples_is_the_base_model():
    base, model = build("mix")
    assert torch.equal(outputs(model, "mix", adapter_names=["__base__"] * 3), outputs(base, "mix"))


@pytest.mark.parametrize(
    ("second", "names", "message"),
    [
        ({"vpt": 3}, ["default", "second", "second"], "in block 0 they have 2 and 3 VPT tokens of their own"),
        ({"lora": 3}, ["default", "second", "second"], "in block 0 they have 2 and 0 VPT tokens of their own"),
        ({"vpt": 2}, ["default", "__base__", "second"], "'default' and '__base__' cannot share a batch"),
        ({"vpt": 2}, ["default", "third", "second"], "non-existing adapter.s.: third"),
        ({"vpt": 2}, ["default", "second"], "should be the same as the number of inputs, but got 2 and 3"),
        ({"vpt": 2}, "default", "adapter_names must be a list with one adapter name per sample, got 'default'"),
    ],
)
def test_a_mixed_batch_that_makes_no_sense_is_refused(second, names, message):
    _, model = build("mix")
    model.add_adapter("second", make_config("mix", architecture=uniform(**second)))
    expected = outputs(model.eval(), "mix")
    with pytest.raises(ValueError, match=message):
        outputs(model, "mix", adapter_names=names)
    assert torch.equal(outputs(model, "mix"), expected)


def test_a_mixed_batch_is_refused_while_training_or_merged():
    model = two_adapters("lora")
    with pytest.raises(ValueError, match="when the model is in training mode"):
        outputs(model.train(), "lora", adapter_names=["default"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="when there are merged adapters"):
        outputs(model, "lora", adapter_names=["default"] * 3)
