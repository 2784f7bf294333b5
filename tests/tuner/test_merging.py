"""Merging LoRA-only adapters into the backbone, and exporting them as PEFT's own LoRA."""

import copy
import json
import pickle

import pytest
import torch
from conftest import make_model
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, save_as_lora, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from variants import LORA_ONLY, batch, build, fit, make_base, make_config, outputs, same, weights

from peft_noah import Architecture, NoahConfig

on_lora = pytest.mark.parametrize("variant", LORA_ONLY)


def close(actual, expected, dtype=torch.float32):
    """A merged weight sums in another order; in half precision it is rounded once more."""
    tolerance = {
        torch.float32: {},
        torch.float16: {"atol": 5e-3, "rtol": 5e-3},
        torch.bfloat16: {"atol": 4e-2, "rtol": 4e-2},
    }
    torch.testing.assert_close(actual, expected, **tolerance[dtype])


def second(variant, **options):
    rows = {"lora": [3]} if variant == "mlp" else {"lora": [1, 0, 5, 2]}
    return make_config(variant, architecture=Architecture(rows), modules_to_save=[], **options)


# ---------------------------------------------------------------------- merging


@on_lora
def test_merged_unmerged_and_unloaded_outputs_agree(variant):
    base, model = build(variant)
    expected = outputs(fit(model, variant), variant)
    model.merge_adapter()
    close(outputs(model, variant), expected)
    assert not torch.allclose(outputs(model, variant), outputs(base, variant))
    model.unmerge_adapter()
    close(outputs(model, variant), expected)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, BaseTunerLayer) or m._forward_hooks or m._forward_pre_hooks for m in merged.modules())
    assert {n: type(m) for n, m in merged.named_modules()} == {n: type(m) for n, m in base.named_modules()}
    close(outputs(merged, variant), expected)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(merged)), variant), outputs(merged, variant))


@on_lora
def test_a_merged_model_can_be_saved_as_safetensors(variant, tmp_path):
    _, model = build(variant)
    save_file(model.merge_and_unload(safe_merge=True).state_dict(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
@on_lora
def test_half_precision_backbones_merge(variant, autocast, dtype):
    base = make_base(variant).to(dtype)
    x = batch(variant).to(dtype)
    model = get_peft_model(base, make_config(variant, modules_to_save=[]), autocast_adapter_dtype=autocast).eval()

    def logits(m):
        with torch.no_grad():
            return getattr(m(x), "logits", None) if variant != "mlp" else m(x)

    expected = logits(model)
    model.merge_adapter()
    close(logits(model), expected, dtype)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    close(logits(merged), expected, dtype)
    assert {p.dtype for p in merged.parameters()} == {dtype}


@on_lora
def test_merging_twice_warns_and_changes_nothing(variant):
    _, model = build(variant)
    model.merge_adapter()
    expected = outputs(model, variant)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert torch.equal(outputs(model, variant), expected)


@on_lora
def test_disabling_a_merged_adapter_unmerges_it(variant):
    base, model = build(variant)
    model.merge_adapter()
    with model.disable_adapter():
        close(outputs(model, variant), outputs(base, variant))


@on_lora
@pytest.mark.parametrize("names", [["second"], ["default"], ["second", "default"]])
def test_named_adapters_merge(variant, names):
    base, model = build(variant, modules_to_save=[])
    model.add_adapter("second", second(variant))
    model.eval().base_model.set_adapter(names)
    expected = outputs(model, variant)
    model.set_adapter("default")
    close(outputs(copy.deepcopy(model).merge_and_unload(adapter_names=names), variant), expected)
    model.merge_adapter(adapter_names=names)
    model.unmerge_adapter()
    for name, value in model.unload().state_dict().items():
        close(value, base.state_dict()[name])


def test_two_active_adapters_merge_together():
    _, model = build("lora", modules_to_save=[])
    model.add_adapter("second", second("lora"))
    model.eval().base_model.set_adapter(["default", "second"])
    expected = outputs(model, "lora")
    close(outputs(model.merge_and_unload(), "lora"), expected)


def test_an_unknown_adapter_or_a_bare_name_does_not_merge():
    _, model = build("lora")
    before = weights(model)
    with pytest.raises(ValueError, match="adapter 'unknown' does not exist"):
        model.merge_adapter(adapter_names=["unknown"])
    with pytest.raises(TypeError, match="should be a list of strings, got 'default'"):
        model.merge_adapter(adapter_names="default")
    assert same(before, weights(model))


@on_lora
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_safe_merge_of_a_broken_adapter_changes_nothing(variant, broken):
    _, model = build(variant)
    last = [p for name, p in model.named_parameters() if ".noah_lora." in name][-1]
    with torch.no_grad():
        last[0] = broken
    before = weights(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            ValueError, match="NaNs detected in the merged weights. The adapter default seems to be broken"
        ):
            merge(safe_merge=True)
        assert len(before) == len(weights(model)) and not any(
            getattr(m, "merged_adapters", []) for m in model.modules()
        )
        assert all(torch.equal(v.nan_to_num(), weights(model)[k].nan_to_num()) for k, v in before.items())


@on_lora
def test_a_safe_merge_of_one_broken_layer_leaves_it_as_it_is(variant):
    _, model = build(variant)
    for layer in (m for m in model.modules() if getattr(m, "noah_lora", None)):
        weight = layer.weight.clone()
        with torch.no_grad():
            for p in layer.noah_lora.parameters():
                p.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaNs detected"):
            layer.merge(safe_merge=True)
        assert torch.equal(layer.weight, weight) and not layer.merged


@pytest.mark.parametrize("variant", ["mix", "adapter", "vpt", "mix-released"])
@pytest.mark.parametrize("safe", [True, False])
def test_what_no_weight_can_express_does_not_merge_and_changes_nothing(variant, safe):
    _, model = build(variant)
    before, expected = weights(model), outputs(model, variant)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="which no single weight can express: only what is linear merges"):
            merge(safe_merge=safe)
        assert same(before, weights(model)) and torch.equal(outputs(model, variant), expected)


def test_a_supernet_merges_its_lora_only_subnets():
    _, model = build("mix")
    model.set_architecture(Architecture.uniform(4, lora=2))
    expected = outputs(model, "mix")
    model.merge_adapter()
    close(outputs(model, "mix"), expected)


def test_a_merged_adapter_keeps_its_architecture_and_its_place():
    _, model = build("lora")
    model.merge_adapter()
    for action in (
        lambda: model.set_architecture(Architecture.uniform(4, lora=1)),
        model.extract,
        model.export_lora,
        lambda: model.delete_adapter("default"),
    ):
        with pytest.raises(ValueError, match="merged"):
            action()
    model.unmerge_adapter()
    model.set_architecture(Architecture.uniform(4, lora=1))


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_every_family_merges(family, pixels):
    config = NoahConfig(architecture=Architecture.uniform(4, lora=3), init_weights=False)
    model = get_peft_model(make_model(family), config).eval()
    expected = model(pixel_values=pixels).logits
    close(model.merge_and_unload()(pixel_values=pixels).logits, expected)


# ---------------------------------------------------------------------- export


@on_lora
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_an_exported_subnet_is_a_peft_lora_with_equal_outputs(variant, scale, tmp_path):
    base, model = build(variant, lora_scale=scale)
    fit(model, variant)
    rows = {"lora": [3]} if variant == "mlp" else {"lora": [3, 0, 2, 3]}
    model.set_architecture(rows)
    expected = outputs(model, variant)
    exported = model.export_lora()
    assert type(exported.peft_config["default"]) is LoraConfig
    close(outputs(exported, variant), expected)
    assert torch.equal(outputs(model, variant), expected)
    exported.save_pretrained(tmp_path)
    close(outputs(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path), variant), expected)
    model.set_architecture({"lora": [0]} if variant == "mlp" else {"lora": [0, 0, 0, 0]})
    close(outputs(model.export_lora(rows), variant), expected)


def test_an_export_keeps_ranks_scales_and_targets_in_its_config():
    _, model = build("lora", lora_scale=0.5, task_type="FEATURE_EXTRACTION")
    config = model.export_lora({"lora": [3, 0, 2, 3]}).peft_config["default"]
    prefix = "vit.layers.2.attention."
    assert (config.r, config.lora_alpha, config.task_type) == (3, 1.5, "FEATURE_EXTRACTION")
    assert config.rank_pattern == {f"{prefix}q_proj": 2, f"{prefix}k_proj": 2}
    assert config.alpha_pattern == {f"{prefix}q_proj": 1.0, f"{prefix}k_proj": 1.0}
    assert len(config.target_modules) == 6 and config.modules_to_save == ["classifier"]


@on_lora
@pytest.mark.parametrize("rank", [10, 0.999999])
def test_pefts_own_conversion_to_lora_keeps_the_outputs(variant, rank, tmp_path):
    base, model = build(variant, lora_scale=0.5)
    expected = outputs(fit(model, variant), variant)
    save_as_lora(tmp_path, model, rank=rank)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert type(loaded.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(outputs(loaded, variant), expected, atol=2e-3, rtol=2e-3)


def test_a_supernets_lora_only_subnet_converts_once_it_is_extracted():
    _, model = build("mix")
    model.set_architecture({"lora": [3, 0, 2, 4]})
    with pytest.raises(TypeError, match="do not support LoRA conversion"):  # norms that tokens could enter
        convert_to_lora(model, rank=4)
    expected, subnet = outputs(model, "mix"), model.extract()
    config, state = convert_to_lora(subnet, rank=4)
    close(outputs(load_lora(subnet, config, state), "mix"), expected)


def load_lora(noah, config, state):
    """The converted adapter on the backbone that it was made for."""
    model = get_peft_model(noah.base_model._bare_copy(), config)
    assert not set_peft_model_state_dict(model, state).unexpected_keys
    return model.eval()


@pytest.mark.parametrize("kind", ["adapter", "vpt", "mix"])
def test_an_adapter_that_no_weight_can_express_does_not_convert(kind):
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(build(kind)[1], rank=4)


LOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import ViTForImageClassification
model = PeftModel.from_pretrained(ViTForImageClassification.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
pixels = torch.randn((3, 3, 16, 16), generator=torch.Generator().manual_seed(1))
print(json.dumps(model(pixels).logits.tolist()))
assert "peft_noah" not in sys.modules
"""


def test_an_exported_adapter_loads_without_this_package(python, tmp_path):
    base, model = build("lora-released")
    base.save_pretrained(tmp_path / "base")
    fit(model, "lora-released").export_lora({"lora": [3, 1, 0, 4]}).save_pretrained(tmp_path / "lora")
    done = python.run("-c", LOAD, tmp_path / "base", tmp_path / "lora")
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    model.set_architecture({"lora": [3, 1, 0, 4]})
    close(torch.tensor(loaded), outputs(model, "lora-released"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "a LoraConfig cannot express adapter and vpt: only LoRA-only architectures can be exported"),
        ({"lora": [1] * 4, "vpt": [0, 1, 0, 0]}, "a LoraConfig cannot express vpt"),
        ({"adapter": [1] * 4}, "a LoraConfig cannot express adapter"),
        ({"vpt": [0] * 4}, "there is nothing to export"),
        ({"lora": [9] * 4}, "lora in block 0 cannot take dim 9"),
    ],
)
def test_what_a_lora_config_cannot_express_is_not_exported(rows, message):
    _, model = build("mix")
    with pytest.raises(ValueError, match=message):
        model.export_lora(rows)
    close(outputs(model.export_lora(Architecture.uniform(4, lora=2)), "mix"), outputs_at(model, lora=2))


def outputs_at(model, **dims):
    model.set_architecture(Architecture.uniform(4, **dims))
    return outputs(model, "mix")
