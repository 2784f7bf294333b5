"""Merging any mix of modules that are linear, biases included, and taking it out again."""

import copy
import itertools

import pytest
import torch
from conftest import SIZES, make_model
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from peft_noah import Architecture, NoahConfig
from peft_noah.fast import fast_forward

ROWS = {"lora": 3, "lora_fc2": 2, "ssf": 1, "bitfit": 1, "rep_adapter": 2}  # all of them meet on fc2
MIXES = [mix for size in range(1, len(ROWS) + 1) for mix in itertools.combinations(ROWS, size)]


def config(*rows, **options):
    options = {"init_weights": False, "modules_to_save": [], **options}
    return NoahConfig(architecture=Architecture.uniform(4, **{row: ROWS[row] for row in rows}), **options)


def build(*rows, family="vit", base=None, **options):
    torch.manual_seed(0)
    base = make_model(family) if base is None else base
    return get_peft_model(base, config(*rows, **options), autocast_adapter_dtype=False).double().eval()


@torch.no_grad()
def logits(model, pixels):
    return model(pixel_values=pixels.double()).logits


def frozen(model):
    return {name: value.clone() for name, value in model.state_dict().items() if ".noah_" not in name}


@pytest.mark.parametrize(
    ("family", "mix"),
    [*(("vit", mix) for mix in MIXES), *(("dinov2", mix) for mix in MIXES if len(mix) in (1, len(ROWS)))],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_mix_merges_and_is_taken_out_again(mix, family, pixels):
    model = build(*mix, family=family, lora_scale=0.5, adapter_scale=2.0)
    expected, before = logits(model, pixels), frozen(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, pixels), expected)
    assert any(not torch.equal(value, before[name]) for name, value in frozen(model).items())
    model.unmerge_adapter()
    torch.testing.assert_close(frozen(model), before)
    torch.testing.assert_close(logits(model, pixels), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, pixels), expected)
    assert {n: type(m) for n, m in merged.named_modules()} == {
        n: type(m) for n, m in make_model(family).named_modules()
    }


@pytest.mark.parametrize("order", [("default", "other"), ("other", "default")])
def test_several_adapters_merge_in_the_order_in_which_they_act(order, pixels):
    model = build("ssf", "lora")
    model.add_adapter("other", config("bitfit", "lora_fc2", "ssf"))
    model.double().eval().base_model.set_adapter(list(order))
    expected, before = logits(model, pixels), frozen(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, pixels), expected)
    again = copy.deepcopy(model)
    again.unmerge_adapter()
    torch.testing.assert_close(frozen(again), before)
    torch.testing.assert_close(logits(model.merge_and_unload(), pixels), expected)


def test_a_factor_of_zero_is_taken_out_to_the_bit(pixels):
    model = build("ssf")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("q_proj.noah_ssf.default.gamma"):
                weight.fill_(-1)
    before = frozen(model)
    model.merge_adapter()
    model.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in frozen(model).items())


@pytest.mark.parametrize("row", ["ssf", "bitfit"])
def test_a_safe_merge_looks_at_biases_too_and_then_changes_nothing(row, pixels):
    model = build(row)
    with torch.no_grad():
        [p for n, p in model.named_parameters() if n.endswith(f"fc2.noah_{row}.default.beta")][-1][0, 0] = float("nan")
    before = frozen(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected"):
            merge(safe_merge=True)
        assert all(torch.equal(value, before[name]) for name, value in frozen(model).items())


@pytest.mark.parametrize("row", ["ssf", "bitfit"])
def test_a_leaf_without_a_bias_is_named_before_anything_has_changed(row, pixels):
    torch.manual_seed(0)
    base = ViTForImageClassification(ViTConfig(**SIZES, num_labels=5, qkv_bias=False))
    model = build(row, base=base)
    expected, before = logits(model, pixels), frozen(model)
    with pytest.raises(ValueError, match=f"active {row} modules on a Linear without a bias"):
        model.merge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in frozen(model).items())
    assert torch.equal(logits(model, pixels), expected)


def test_what_is_not_linear_in_the_mix_is_named(pixels):
    model = get_peft_model(
        make_model(), NoahConfig(architecture=Architecture.uniform(4, ssf=1, vpt=2, adapter_plus=2))
    )
    with pytest.raises(
        ValueError, match=r"active adapter_plus and vpt modules, .* merges \(lora, ssf, bitfit, rep_adapter\)"
    ):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="a LoraConfig cannot express ssf"):
        model.export_lora({"ssf": [1] * 4})


def test_half_precision_biases_keep_their_dtype(pixels):
    model = get_peft_model(make_model().to(torch.bfloat16), config("ssf", "lora"))
    assert {p.dtype for p in model.merge_and_unload().parameters()} == {torch.bfloat16}


def test_the_fast_forward_sees_a_bias_that_was_merged(pixels):
    model = build("bitfit")
    with torch.inference_mode(), fast_forward(model) as fast:
        expected = logits(model, pixels)
        with model.disable_adapter():
            assert not torch.allclose(logits(model, pixels), expected)
        model.merge_adapter()
        torch.testing.assert_close(logits(model, pixels), expected)
        model.unmerge_adapter()
        torch.testing.assert_close(logits(model, pixels), expected)
        assert fast.reason is None
