"""One adapter and several on a backbone, and everything else that PEFT's own methods do with an adapter."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from conftest import make_model
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from variants import ROWS, VARIANTS, build, fit, forward, make_base, make_config, outputs, same, uniform, weights

from peft_noah import Architecture, NoahConfig

on_all = pytest.mark.parametrize("variant", VARIANTS)


# ---------------------------------------------------------------------- one adapter


@on_all
def test_training_changes_every_trainable_weight_and_no_other(variant):
    _, model = build(variant)
    before, trainable = weights(model), {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".noah_" in name or ".modules_to_save." in name for name in trainable)
    fit(model, variant)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == trainable


@on_all
def test_a_saved_adapter_computes_the_same_under_another_name(variant, tmp_path):
    base, model = build(variant)
    expected = outputs(fit(model, variant), variant)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, adapter_name="other-name")
    assert torch.equal(outputs(loaded, variant), expected)
    loaded.load_adapter(tmp_path, "second")
    loaded.set_adapter("second")
    assert torch.equal(outputs(loaded, variant), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@on_all
def test_a_state_dict_goes_from_one_model_into_another(variant):
    _, model = build(variant)
    base, twin = build(variant, init_weights=True)
    result = set_peft_model_state_dict(twin, get_peft_model_state_dict(fit(model, variant)))
    assert not result.unexpected_keys and not [key for key in result.missing_keys if ".noah_" in key]
    assert torch.equal(outputs(twin, variant), outputs(model, variant))


@on_all
def test_disabling_restores_the_base_outputs_bit_for_bit_before_and_after_training(variant):
    base, model = build(variant)
    for step in (lambda: model, lambda: fit(model, variant)):
        adapted = outputs(step(), variant)
        assert not torch.allclose(adapted, outputs(base, variant))
        with model.disable_adapter():
            assert torch.equal(outputs(model, variant), outputs(base, variant))
        assert torch.equal(outputs(model, variant), adapted)


@on_all
def test_unloading_leaves_no_layer_no_hook_and_no_changed_weight(variant):
    base, model = build(variant)
    model.add_adapter("second", make_config(variant))
    plain = model.unload()
    assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in base.named_modules()}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in plain.modules())
    assert same(weights(base), weights(plain)) and not hasattr(plain, "peft_config")


@on_all
def test_a_copied_or_pickled_model_computes_the_same(variant):
    _, model = build(variant)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(twin, variant), outputs(model, variant))


@on_all
def test_injecting_without_a_peft_model_computes_the_same(variant):
    base, model = build(variant, modules_to_save=[])
    torch.manual_seed(0)
    injected = inject_adapter_in_model(make_config(variant, modules_to_save=[]), base)
    result = set_peft_model_state_dict(injected, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert torch.equal(outputs(injected.eval(), variant), outputs(model, variant))


@on_all
def test_wrapped_layers_show_the_weight_of_the_layer_they_wrap(variant):
    base, model = build(variant)
    layers = [(n, m) for n, m in model.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)]
    assert layers and all(torch.equal(m.weight, base.get_submodule(n).weight) for n, m in layers)
    assert all(repr(m).startswith("noah.") for _, m in layers)


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_wrapped_layers_tell_their_widths_norms_and_scales_too(family):
    base = make_model(family)
    model = get_peft_model(copy.deepcopy(base), NoahConfig(recipe="released"))
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    wrapped = {type(base.get_submodule(name)).__name__ for name in layers}
    assert wrapped == {"Linear", "LayerNorm"} | ({"Dinov2LayerScale"} if family == "dinov2" else set())
    for name, layer in layers.items():
        leaf = base.get_submodule(name)
        expected = [getattr(leaf, width, 24) for width in ("in_features", "out_features")]
        assert [layer.in_features, layer.out_features] == expected


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_state_dict_goes_from_one_bare_model_into_another_with_the_default_config(low_cpu_mem_usage, pixels):
    def inject(seed, **options):
        torch.manual_seed(seed)
        return inject_adapter_in_model(
            NoahConfig(init_weights=False), make_model(), adapter_name="a", **options
        ).eval()

    model = inject(3)
    model.classifier.modules_to_save["a"].weight.data.normal_()
    state = get_peft_model_state_dict(model, adapter_name="a")
    other = inject(5, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state)
    loaded = set_peft_model_state_dict(other, state, adapter_name="a", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not loaded.unexpected_keys and not any("noah_" in key for key in loaded.missing_keys)
    assert torch.equal(forward(other, pixels), forward(model, pixels))


# ---------------------------------------------------------------------- several adapters


@on_all
def test_a_second_adapter_is_neither_active_nor_trainable_until_it_is_set(variant):
    _, model = build(variant)
    expected = outputs(model, variant)

    def trainable():
        return {name for name, p in model.named_parameters() if p.requires_grad}

    first = trainable()
    model.add_adapter("second", make_config(variant))
    assert trainable() == first and torch.equal(outputs(model.eval(), variant), expected)
    model.set_adapter("second")
    assert trainable() == {name.replace(".default", ".second") for name in first}
    model.set_adapter("second", inference_mode=True)
    assert not trainable()
    model.set_requires_grad("default")
    assert trainable() == first


@on_all
def test_switching_gives_each_adapters_own_outputs(variant):
    _, model = build(variant)
    rows = {"lora": [2]} if variant == "mlp" else {"adapter": [5, 0, 1, 2], "vpt": [1, 3, 0, 0], "lora": [0, 2, 7, 0]}
    model.add_adapter("second", make_config(variant, architecture=Architecture(rows)))
    model.eval()
    first = outputs(model, variant)
    model.set_adapter("second")
    second = outputs(fit(model, variant), variant)
    alone = get_peft_model(make_base(variant), make_config(variant, architecture=Architecture(rows))).eval()
    state = get_peft_model_state_dict(model, adapter_name="second")
    set_peft_model_state_dict(alone, state)
    assert torch.equal(outputs(alone, variant), second) and not torch.allclose(first, second)
    assert model.get_architecture() == Architecture(rows)
    model.set_adapter("default")
    assert torch.equal(outputs(model, variant), first)


@pytest.mark.parametrize("first", ROWS)
@pytest.mark.parametrize("second", ROWS)
def test_an_adapter_can_be_added_to_one_with_or_without_tokens(first, second):
    _, model = build(first)
    alone = get_peft_model(make_model(), make_config(second)).eval()
    model.add_adapter("second", make_config(second))
    set_peft_model_state_dict(model, get_peft_model_state_dict(alone), adapter_name="second")
    before = outputs(model.eval(), first)
    model.set_adapter("second")
    assert torch.equal(outputs(model, first), outputs(alone, first))
    model.delete_adapter("second")
    assert torch.equal(outputs(model, first), before)


@on_all
@pytest.mark.parametrize("active", [True, False])
def test_deleting_an_adapter_leaves_nothing_of_it(variant, active):
    base, model = build(variant)
    expected = outputs(model, variant)
    model.add_adapter("delete_me", make_config(variant))
    if active:
        model.set_adapter("delete_me")
    model.delete_adapter("delete_me")
    assert list(model.peft_config) == model.active_adapters == ["default"]
    assert not any("delete_me" in key for key in model.state_dict())
    assert torch.equal(outputs(model.eval(), variant), expected)
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            assert module.active_adapters == ["default"]
    model.delete_adapter("default")
    assert model.active_adapters == [] and not model.peft_config
    assert torch.equal(outputs(model.base_model, variant), outputs(base, variant))


@pytest.mark.parametrize("left", ROWS)
@pytest.mark.parametrize("deleted", ROWS)
def test_deleting_the_active_adapter_activates_the_other_in_every_layer(deleted, left):
    _, model = build(left)
    expected = outputs(model, left)
    model.add_adapter("delete_me", make_config(deleted))
    model.set_adapter("delete_me")
    model.delete_adapter("delete_me")
    assert model.active_adapters == ["default"]
    assert torch.equal(outputs(model.eval(), left), expected)


def test_deleting_an_unknown_adapter_is_refused():
    _, model = build("mix")
    with pytest.raises(ValueError, match="Adapter unknown does not exist"):
        model.delete_adapter("unknown")


@on_all
def test_an_adapter_that_cannot_be_added_leaves_the_model_as_it_was(variant):
    _, model = build(variant)
    before, expected = weights(model), outputs(model, variant)
    with pytest.raises(ValueError, match="row 'lora' has 7 dims"):
        model.add_adapter("second", make_config(variant, architecture=Architecture.uniform(7, lora=2)))
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", make_config(variant))
    assert list(model.peft_config) == ["default"] and same(before, weights(model))
    assert torch.equal(outputs(model, variant), expected)


def test_all_linear_reaches_layers_that_an_adapter_wraps_already():
    options = {"target_modules": "all-linear", "architecture": uniform(lora=2)}
    _, model = build("mix")
    model.add_adapter("second", NoahConfig(**options))
    alone = get_peft_model(make_model(), NoahConfig(**options))
    number = sum("noah_lora.default" in name for name, _ in alone.named_parameters())
    assert sum("noah_lora.second" in name for name, _ in model.named_parameters()) == number == 2 * 6 * 4


# ---------------------------------------------------------------------- with PEFT's own methods


PEFT_CONFIGS = {
    "lora": LoraConfig(target_modules=["q_proj", "fc2"], init_lora_weights=False),
    "ia3": IA3Config(target_modules=["q_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False),
}
with_peft = pytest.mark.parametrize("method", PEFT_CONFIGS)


@with_peft
@pytest.mark.parametrize("variant", ROWS)
@pytest.mark.parametrize("noah_first", [True, False])
def test_a_peft_adapter_and_a_noah_one_follow_one_another(variant, method, noah_first):
    base, configs = make_base(variant), [make_config(variant), copy.deepcopy(PEFT_CONFIGS[method])]
    model = copy.deepcopy(base)
    for config in configs if noah_first else configs[::-1]:
        adapted = get_peft_model(model, config).eval()
        assert not torch.allclose(outputs(adapted, variant), outputs(base, variant))
        model = adapted.unload()
    assert torch.equal(outputs(model, variant), outputs(base, variant)) and same(weights(base), weights(model))


@with_peft
@pytest.mark.parametrize("variant", ROWS)
def test_a_noah_adapter_on_merged_peft_weights_starts_from_them(variant, method):
    merged = get_peft_model(make_base(variant), copy.deepcopy(PEFT_CONFIGS[method])).merge_and_unload().eval()
    expected = outputs(merged, variant)
    model = get_peft_model(copy.deepcopy(merged), make_config(variant)).eval()
    assert not torch.allclose(outputs(model, variant), expected)
    with model.disable_adapter():
        assert torch.equal(outputs(model, variant), expected)


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT for a second time", "ignore:Already found a `peft_config`"
)
@with_peft
@pytest.mark.parametrize("variant", ROWS)
def test_a_noah_adapter_around_a_peft_one_acts_and_leaves_it_as_it_is(variant, method):
    inner = get_peft_model(make_base(variant), copy.deepcopy(PEFT_CONFIGS[method])).eval()
    expected = outputs(inner, variant)
    outer = get_peft_model(inner.base_model.model, make_config(variant)).eval()
    assert not torch.allclose(outputs(outer, variant), expected)
    outer.set_architecture(dict.fromkeys(ROWS[variant], [0] * 4))
    assert torch.equal(outputs(outer, variant), expected)


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT for a second time", "ignore:Already found a `peft_config`"
)
@with_peft
@pytest.mark.parametrize("variant", ROWS)
def test_a_noah_adapter_inside_a_peft_one_still_acts(variant, method):
    base, inner = build(variant)
    noah_alone = outputs(inner, variant)
    torch.manual_seed(5)
    peft_alone = outputs(get_peft_model(copy.deepcopy(base), copy.deepcopy(PEFT_CONFIGS[method])).eval(), variant)
    torch.manual_seed(5)
    outer = get_peft_model(inner.base_model.model, copy.deepcopy(PEFT_CONFIGS[method])).eval()
    for other in (noah_alone, peft_alone, outputs(base, variant)):
        assert not torch.allclose(outputs(outer, variant), other)
    with outer.disable_adapter():
        assert torch.equal(outputs(outer, variant), outputs(base, variant))


# ---------------------------------------------------------------------- the rest


@pytest.mark.parametrize("variant", ["mix", "mix-released", "lora-released", "mlp"])
def test_an_adapter_among_several_can_be_extracted(variant):
    _, model = build(variant)
    model.add_adapter("second", make_config(variant))
    model.set_adapter("second")
    expected = outputs(fit(model, variant), variant)
    model.set_adapter("default")
    assert torch.equal(outputs(model.extract(adapter_name="second"), variant), expected)
    assert model.active_adapters == ["default"]


@on_all
def test_a_loaded_adapter_is_frozen_unless_it_shall_be_trained(variant, tmp_path):
    base, model = build(variant)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=True)
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in trainable.named_parameters() if p.requires_grad} == expected


@on_all
def test_a_status_report_finds_nothing_irregular(variant):
    _, model = build(variant)
    model.add_adapter("second", make_config(variant))
    status = model.get_model_status()
    assert status.available_adapters == ["default", "second"] and status.active_adapters == ["default"]
    assert (status.enabled, status.merged_adapters) == (True, [])
    assert status.requires_grad == {"default": True, "second": False}


@pytest.fixture
def one_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP", "ignore:When using ``NO_SHARD``")
@on_all
def test_a_state_dict_of_fsdp_holds_the_adapter(variant, one_process_group):
    _, model = build(variant)
    expected, before = get_peft_model_state_dict(model), outputs(model, variant)
    sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    assert torch.equal(outputs(sharded, variant), before)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT):
        assert same(expected, get_peft_model_state_dict(model, state_dict=sharded.state_dict()))


def test_peft_says_that_its_mixed_model_does_not_know_the_method():
    with pytest.raises(ValueError, match="'NOAH' is not compatible with the `PeftMixedModel`"):
        get_peft_model(make_model(), make_config("lora"), mixed=True)
