"""The fast forward against the plain one: every gain alone and all together, in logits and gradients."""

import copy
import itertools
import logging

import pytest
import torch
from conftest import SIZES, make_model
from peft import get_peft_model
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification, ViTForImageClassification

import peft_noah.tuner.layer
from peft_noah import NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.fast.block import FastCall, FastOptions, matmul_attention
from peft_noah.fast.packed import FrozenLinears, PackedLinear
from peft_noah.tuner.prompts.tokens import FAST_CALL

OPTIONS = list(FastOptions.__dataclass_fields__)
ARCHITECTURES = [
    {"lora": [10, 10, 10, 10], "adapter": [10, 10, 10, 10], "vpt": [10, 10, 10, 10]},
    {"lora": [3, 0, 2, 5], "adapter": [0, 3, 1, 0], "vpt": [5, 9, 0, 0]},  # released: tokens of block 1 run on
    {"lora": [3, 1, 0, 0], "adapter": [0, 3, 1, 2], "vpt": [0, 1, 0, 3]},  # block 3 has tokens of its own again
]


def only(option):
    return {name: option in (name, "all") for name in OPTIONS}


def build(family="vit", recipe="paper", dtype=torch.float64, **config):
    if family == "deit":
        torch.manual_seed(0)
        base = DeiTForImageClassification(DeiTConfig(**SIZES, num_labels=5)).eval()
    else:
        base = make_model(family)
    config = {"dropout": 0.0, "drop_path": 0.0, "init_weights": False, **config}
    return get_peft_model(base, NoahConfig(recipe=recipe, **config), autocast_adapter_dtype=False).to(dtype)


def logits_and_gradients(model, pixels):
    model.zero_grad()
    logits = model(pixel_values=pixels).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, pixels, atol, **options):
    expected, gradients = logits_and_gradients(model, pixels)
    with fast_forward(model, **options) as fast:
        logits, fast_gradients = logits_and_gradients(model, pixels)
    assert fast.reason is None
    torch.testing.assert_close(logits, expected, atol=atol, rtol=atol)
    torch.testing.assert_close(fast_gradients, gradients, atol=atol, rtol=atol)


@pytest.mark.parametrize(
    ("family", "option"), [*itertools.product(["vit", "dinov2"], [*OPTIONS, "all"]), ("deit", "all")]
)
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_every_gain_alone_keeps_logits_and_gradients(family, recipe, option, pixels):
    model = build(family, recipe).train()
    for rows in ARCHITECTURES:
        model.set_architecture(rows)
        assert_same(model, pixels.double(), 1e-10, **only(option))


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_float32_weights_in_onednns_layout_keep_logits_and_gradients(family, recipe, pixels):
    model = build(family, recipe, torch.float32).train()
    for rows in ARCHITECTURES:
        model.set_architecture(rows)
        assert_same(model, pixels, 1e-5)


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_lora_on_all_sites_joins_the_frozen_products(family, pixels, monkeypatch):
    joined = []

    def spy(self, x, leaves, *args, call=FrozenLinears.__call__, updates=(), **kwargs):
        joined.append(len(updates))
        return call(self, x, leaves, *args, updates=updates, **kwargs)

    monkeypatch.setattr(FrozenLinears, "__call__", spy)
    rows = {"lora": [2, 1, 2, 2], "adapter": [3, 0, 3, 3], "vpt": [2, 2, 2, 2]}
    model = build(family, architecture=rows, target_modules="all-linear", lora_scale=4.0, dtype=torch.float32)
    for changes in ({}, {"lora": [2, 0, 1, 2]}):
        model.set_architecture({**rows, **changes})
        joined.clear()
        assert_same(model.train(), pixels, 1e-4)
        counts = [joined.count(number) for number in (3, 2, 1)]
        blocks = 4 - (not model.get_architecture()["lora"][1])
        # query, key and value of the tokens and of VPT's; a ViT's last block has a query of the class token alone
        assert counts == {"vit": [2 * (blocks - 1), 2, 3 * blocks + 1], "dinov2": [2 * blocks, 0, 3 * blocks]}[family]
        with torch.inference_mode():
            expected = model.eval()(pixel_values=pixels).logits
            with fast_forward(model):
                torch.testing.assert_close(model(pixel_values=pixels).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("option", [*OPTIONS, "all"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_logits_without_gradients_are_equal_in_evaluation_mode(recipe, option, pixels):
    for family in ("vit", "dinov2"):
        model = build(family, recipe).eval()
        for rows in ARCHITECTURES:
            model.set_architecture(rows)
            with torch.inference_mode():
                expected = model(pixel_values=pixels.double()).logits
                with fast_forward(model, **only(option)):
                    logits = model(pixel_values=pixels.double()).logits
            torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


@pytest.fixture
def repeatable_dropout(monkeypatch):
    """Dropout and stochastic depth that depend on the values alone, so that both paths draw the same whatever the order."""
    monkeypatch.setattr(
        nn.Dropout, "forward", lambda self, x: x * (1 + self.p * torch.sin(10 * x)) if self.training else x
    )
    monkeypatch.setattr(
        peft_noah.tuner.layer, "drop_path", lambda y, rate, training: y * (1 - rate) if training else y
    )


@pytest.mark.parametrize("option", [*OPTIONS, "all"])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_dropout_and_stochastic_depth_act_on_the_same_values(family, option, pixels, repeatable_dropout):
    for recipe in ("paper", "released"):
        model = build(family, recipe, dropout=0.1, drop_path=0.1).train()
        for rows in ARCHITECTURES:
            model.set_architecture(rows)
            assert_same(model, pixels.double(), 1e-10, **only(option))


def test_dropout_draws_tokens_anew_for_each_sample(pixels):
    model = build(architecture={"vpt": [4, 4, 4, 4]}, dropout=0.5).train()
    twice = pixels[:1].double().expand(2, -1, -1, -1)
    with fast_forward(model):
        first, second = model(pixel_values=twice).logits
        assert not torch.equal(first, second)
        first, second = model.eval()(pixel_values=twice).logits
        torch.testing.assert_close(first, second)


def test_only_what_is_read_is_computed(pixels, monkeypatch):
    seen = {}

    def spy(self, x, leaves, *args, call=FrozenLinears.__call__, **kwargs):
        seen.setdefault(names[leaves[0]], []).append(tuple(x.shape[:2]))
        return call(self, x, leaves, *args, **kwargs)

    model = build(architecture={"vpt": [4, 4, 4, 4]}, dtype=torch.float32).train()
    names = {module: name.partition("layers.")[2] for name, module in model.named_modules()}
    monkeypatch.setattr(FrozenLinears, "__call__", spy)
    with fast_forward(model):
        model(pixel_values=pixels)
    assert seen["0.attention.q_proj"] == [(3, 5), (1, 4)]  # 5 tokens of 3 images, 4 prompts of all
    assert seen["0.mlp.fc1"] == seen["0.attention.o_proj"] == [(3, 5)]
    assert seen["3.attention.q_proj"] == seen["3.mlp.fc1"] == [(3, 1)]
    assert seen["3.attention.k_proj"] == [(3, 5), (1, 4)]


def test_weights_that_an_architecture_leaves_out_get_gradients_of_zero(pixels):
    model = build(recipe="released", dtype=torch.float32).train()
    model.set_architecture({"lora": [1, 0, 0, 0], "adapter": [1, 0, 0, 0], "vpt": [1, 0, 0, 0]})
    with fast_forward(model):
        model(pixel_values=pixels).logits.sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert not any(p.grad.any() for name, p in trained.items() if "layers.2." in name)


def test_several_active_adapters_and_disabled_ones_are_equal(pixels):
    model = build(architecture={"lora": [2, 2, 2, 2], "vpt": [2, 2, 0, 2]})
    more = NoahConfig(
        architecture={"adapter": [2, 2, 2, 2], "lora": [1, 1, 1, 1]}, init_weights=False, modules_to_save=[]
    )
    model.add_adapter("more", more)
    model.double().eval().base_model.set_adapter(["default", "more"])
    pixels = pixels.double()
    with torch.inference_mode():
        both = model(pixel_values=pixels).logits
        with model.disable_adapter():
            none = model(pixel_values=pixels).logits
        with fast_forward(model) as fast:
            torch.testing.assert_close(model(pixel_values=pixels).logits, both)
            assert fast.reason is None
            with model.disable_adapter():
                torch.testing.assert_close(model(pixel_values=pixels).logits, none)


def test_a_frozen_backbone_without_adapters_and_one_that_is_trained_are_equal(vit, pixels):
    expected, gradients = logits_and_gradients(vit, pixels)
    with fast_forward(vit):
        logits, fast_gradients = logits_and_gradients(vit, pixels)
        torch.testing.assert_close((logits, fast_gradients), (expected, gradients), atol=1e-5, rtol=1e-5)
    vit.requires_grad_(False)
    with fast_forward(vit):
        torch.testing.assert_close(vit(pixel_values=pixels).logits, expected)


def test_trained_and_swapped_weights_are_seen_inside(pixels):
    model = build(dtype=torch.float32).eval()
    with fast_forward(model), torch.no_grad():
        for rows in (*ARCHITECTURES, ARCHITECTURES[0]):
            model.set_architecture(rows)
            for weight in model.parameters():
                weight.mul_(1.01)
            logits = model(pixel_values=pixels).logits
            plain = model(pixel_values=pixels, output_hidden_states=True).logits
            torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)


def test_autocast_stays_within_the_rounding_of_bfloat16(pixels):
    for config in ({"recipe": "paper", "target_modules": "all-linear"}, {"recipe": "released"}):
        model = build(**config, dtype=torch.float32).train()
        with torch.autocast("cpu", torch.bfloat16):
            expected, gradients = logits_and_gradients(model, pixels)
            with fast_forward(model) as fast:
                logits, fast_gradients = logits_and_gradients(model, pixels)
        assert fast.reason is None
        scale = expected.abs().max()
        assert (logits - expected).abs().max() < 0.03 * scale  # 8 bits, four blocks
        for name, gradient in gradients.items():
            assert (fast_gradients[name] - gradient).norm() <= 0.1 * gradient.norm() + 1e-6, name


def test_attention_by_matrix_products_is_attention():
    query, key = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 3, 7, 8, dtype=torch.float64)
    expected = nn.functional.scaled_dot_product_attention(query, key, key, scale=0.3).transpose(1, 2)
    result, _ = matmul_attention(None, query, key, key, None, dropout=0.0, scaling=0.3)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
    dropped, _ = matmul_attention(None, query, key, key, None, dropout=0.5, scaling=0.3)
    assert not torch.allclose(dropped, expected)


def test_gradient_checkpointing_recomputes_the_fast_blocks(pixels):
    model = build().train()
    expected, gradients = logits_and_gradients(model, pixels.double())
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    with fast_forward(model) as fast:
        logits, fast_gradients = logits_and_gradients(model, pixels.double())
    assert fast.reason is None
    torch.testing.assert_close((logits, fast_gradients), (expected, gradients), atol=1e-10, rtol=1e-10)


def test_training_with_gradient_checkpointing_makes_no_packed_copies(pixels):
    model = build(dtype=torch.float32)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    for training in (True, False):  # what trained needs no memory any more
        with fast_forward(model) as fast:
            model.train(training)(pixel_values=pixels)
        packed = {entry.packed for entry in fast.linears}
        assert packed == {not training}


@pytest.mark.parametrize("small", [0, 64e6])
def test_float32_gradients_are_the_same_with_one_copy_of_the_weights_or_two(small, pixels, monkeypatch):
    monkeypatch.setattr("peft_noah.fast.forward.SMALL", small)
    model = build(dtype=torch.float32).train()
    expected = logits_and_gradients(model, pixels)
    with fast_forward(model) as fast:
        found = logits_and_gradients(model, pixels)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    copies = {entry.transposed is not None for entry in fast.linears}
    assert (True in copies) == bool(small)


def test_a_compiler_sees_one_graph(pixels):
    subnet = build(dtype=torch.float32).eval().extract(ARCHITECTURES[1])
    with fast_forward(subnet), torch.inference_mode():
        expected = subnet(pixel_values=pixels).logits
        logits = torch.compile(subnet, backend="eager", fullgraph=True)(pixel_values=pixels).logits
    torch.testing.assert_close(logits, expected)


def test_a_block_with_a_mask_is_the_plain_one(pixels):
    model = build().eval()
    block = model.base_model.model.vit.layers[1]
    hidden, mask = torch.randn(3, 5, 24, dtype=torch.float64), torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[:, :, :, 3:] = False
    expected = block(hidden, mask)
    with fast_forward(model):
        torch.testing.assert_close(block(hidden, mask, **{FAST_CALL: FastCall(None)}), expected)
        torch.testing.assert_close(block(hidden, mask), expected)


class MeanPooled(ViTForImageClassification):
    def forward(self, pixel_values, **kwargs):
        outputs = self.vit(pixel_values, **kwargs)
        return type("Output", (), {"logits": self.classifier(outputs.last_hidden_state.mean(1))})


def test_a_classifier_of_ones_own_may_read_all_tokens(vit, pixels):
    vit.__class__ = MeanPooled
    expected = vit(pixels).logits
    with fast_forward(vit) as fast:
        torch.testing.assert_close(vit(pixels).logits, expected)
    assert fast.reason is None


# ------------------------------------------------------------------ where it turns itself off


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"output_hidden_states": True}, "output_hidden_states was asked for"),
        ({"output_attentions": True}, "output_attentions was asked for"),
        ({"attention_mask": torch.ones(3, 5)}, "an attention_mask was given"),
    ],
)
def test_calls_that_need_the_plain_path_get_it(pixels, kwargs, reason, caplog):
    model = build(dtype=torch.float32).eval()
    expected = model(pixel_values=pixels, **kwargs)
    with caplog.at_level(logging.INFO, "peft_noah"), fast_forward(model) as fast:
        output = model(pixel_values=pixels, **kwargs)
        assert fast.reason == reason
        model(pixel_values=pixels, **kwargs)
        model(pixel_values=pixels)
        assert fast.reason is None
    assert [record.message for record in caplog.records if record.name == "peft_noah.fast.forward"] == [
        f"the fast forward is off: {reason}."
    ]
    torch.testing.assert_close(output.logits, expected.logits)
    for hidden, other in zip(output.hidden_states or (), expected.hidden_states or (), strict=True):
        torch.testing.assert_close(hidden, other)


def test_hooks_of_others_see_the_plain_path(pixels):
    model = build(dtype=torch.float32).eval()
    shapes = []
    handle = model.base_model.model.vit.layers[0].mlp.register_forward_hook(lambda m, a, y: shapes.append(y.shape))
    with fast_forward(model) as fast:
        model(pixel_values=pixels)
        assert fast.reason == "a ViTMLP has hooks" and shapes == [(3, 15, 24)]
        handle.remove()
        model(pixel_values=pixels)
        assert fast.reason is None


def test_eager_attention_mixed_batches_and_reentrant_checkpointing_turn_it_off(pixels):
    model = build(dtype=torch.float32).eval()
    base = model.base_model.model
    with fast_forward(model) as fast:
        model(pixel_values=pixels, adapter_names=["default"] * 3)
        assert fast.reason == "each sample of the batch has an adapter of its own"
        base.set_attn_implementation("eager")
        model(pixel_values=pixels)
        assert fast.reason == "attention is computed by 'eager', not by 'sdpa'"
        base.set_attn_implementation("sdpa")
        base.gradient_checkpointing_enable({"use_reentrant": True})
        model.train()(pixel_values=pixels)
        assert "reentrant" in fast.reason


def test_unknown_families_and_models_turn_it_off():
    with fast_forward(nn.Linear(3, 3)) as fast:
        assert fast.reason == "the model is not a transformers model"
    model = make_model()
    model.config.model_type = "unheard-of"
    with fast_forward(model) as fast:
        assert fast.reason == "the blocks of model_type 'unheard-of' are not known to it"


def test_sharded_offloaded_and_altered_models_turn_it_off():
    model = make_model()
    model.vit.layers[0]._hf_hook = object()
    with fast_forward(model) as fast:
        assert fast.reason == "Accelerate places the model's layers on several devices"
    del model.vit.layers[0]._hf_hook
    plain = type(model.vit.layers[0])
    model.vit.layers[0].__class__ = type("OwnLayer", (plain,), {})
    with fast_forward(model) as fast:
        assert fast.reason == "the blocks are not transformers' own"
    model.vit.layers[0].__class__ = type("FSDPViTLayer", (plain,), {})
    with fast_forward(model) as fast:
        assert fast.reason == "the model is sharded by FSDP"


# ------------------------------------------------------------------ what it leaves behind


def test_the_model_is_as_before_whatever_happened_inside(pixels):
    model = build(dtype=torch.float32)
    before = {name: (type(module), set(module.__dict__)) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    with pytest.raises(ZeroDivisionError), fast_forward(model):
        assert list(model.state_dict()) == keys
        model(pixel_values=pixels)
        raise ZeroDivisionError
    assert {name: (type(module), set(module.__dict__)) for name, module in model.named_modules()} == before
    assert not model.base_model.model._forward_pre_hooks


def test_a_context_inside_another_changes_nothing(pixels):
    model = build(dtype=torch.float32)
    with fast_forward(model) as outer:
        with fast_forward(model, pack_weights=False) as inner:
            assert inner is outer
        assert isinstance(model.base_model.model.vit.layers[0].mlp.fc1, PackedLinear)


def test_a_copy_made_inside_is_a_plain_model(pixels):
    model = build(dtype=torch.float32).eval()
    with fast_forward(model):
        model(pixel_values=pixels)
        copies = copy.deepcopy(model), model.extract()
    expected = model(pixel_values=pixels).logits
    for other in copies:
        torch.testing.assert_close(other(pixel_values=pixels).logits, expected)
        with fast_forward(other) as fast:
            torch.testing.assert_close(other(pixel_values=pixels).logits, expected)
            assert fast.reason is None
