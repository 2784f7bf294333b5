"""Two adapters that are active at the same time."""

import copy

import pytest
import torch
from conftest import make_model
from peft import (
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from variants import ROWS, batch, build, forward, make_config, uniform

from peft_noah import NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.tuner.layer import NoahLayer


def lora_and(name, **dims):
    """Two adapters without classifiers on one ViT: 'default' with LoRA, and another."""
    _, model = build("lora", modules_to_save=[])
    model.add_adapter(name, NoahConfig(architecture=uniform(**dims), modules_to_save=[], init_weights=False))
    return model.eval()


def copy_weights(source, target, adapters):
    state = {}
    for name in adapters:
        state.update(get_peft_model_state_dict(source, adapter_name=name))
    assert not set_peft_model_state_dict(target, state).unexpected_keys


def test_lora_and_adapter_active_together_equal_one_adapter_with_both(pixels):
    model = lora_and("second", adapter=3)
    model.base_model.set_adapter(["default", "second"])
    both = get_peft_model(make_model(), NoahConfig(architecture=uniform(lora=4, adapter=3), modules_to_save=[])).eval()
    copy_weights(model, both, ["default", "second"])
    assert torch.equal(forward(model, pixels), forward(both, pixels))


@pytest.mark.parametrize("variant", ["lora", "adapter"])
def test_tokens_go_together_with_an_adapter_that_has_none(variant, pixels):
    _, model = build(variant, modules_to_save=[])
    model.add_adapter("tokens", make_config("vpt", modules_to_save=[]))
    model.base_model.set_adapter(["default", "tokens"])
    architecture = uniform(**ROWS[variant], **ROWS["vpt"])
    both = get_peft_model(make_model(), NoahConfig(architecture=architecture, modules_to_save=[])).eval()
    copy_weights(model, both, ["default", "tokens"])
    assert torch.equal(forward(model.eval(), pixels), forward(both, pixels))


def test_two_loras_active_together_add_up():
    _, model = build("mlp", modules_to_save=[])
    model.add_adapter("second", make_config("mlp", modules_to_save=[], architecture={"lora": [3]}))
    model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        layer, x = model.base_model.model.lin0, batch("mlp")
        expected = layer.base_layer(x) + x @ (layer.get_delta_weight("default") + layer.get_delta_weight("second")).T
        torch.testing.assert_close(layer(x), expected)  # sums in another order


# dims by block; where the second has none, tokens of one that carries run on beside the first's
TOKENS = {"first": [2, 1, 0, 3], "second": [3, 0, 2, 0]}
PLACES = ["after_cls", "last"]
PAST = ["drop", "carry"]


def tokens_config(name, position, past):
    options = {"vpt_position": position, "vpt_past_depth": past, "modules_to_save": [], "init_weights": False}
    return NoahConfig(architecture={"vpt": TOKENS[name]}, **options)


def tokens_of(model, name):
    vpts = [layer.noah_vpt[name] for _, layer in model.noah_layers() if name in layer.noah_vpt]
    return {vpt.block: vpt.tokens.detach() for vpt in vpts if vpt.dim}


def plain_logits(base, pixels, adapters):
    """A ViT's logits with tokens of several adapters: (tokens by block, position, past depth) of each, in order."""
    hidden, running = base.vit.embeddings(pixels), {}
    for block, layer in enumerate(base.vit.layers):
        parts = {}
        for index, (tokens, _, past) in enumerate(adapters):
            if block in tokens:
                parts[index] = tokens[block].expand(len(pixels), -1, -1)
            elif past == "carry" and index in running:
                parts[index] = running[index]
        front = [index for index in parts if adapters[index][1] == "after_cls"]
        back = [index for index in parts if adapters[index][1] == "last"]
        stream = [hidden[:, :1], *(parts[i] for i in front), hidden[:, 1:], *(parts[i] for i in back)]
        cls, *out = layer(torch.cat(stream, 1)).split([part.shape[1] for part in stream], 1)
        patches = out.pop(len(front))
        hidden, running = torch.cat([cls, patches], 1), dict(zip([*front, *back], out, strict=True))
    return base.classifier(base.vit.layernorm(hidden)[:, 0])


@pytest.mark.parametrize("order", [["first", "second"], ["second", "first"]])
@pytest.mark.parametrize("past", [(a, b) for a in PAST for b in PAST])
@pytest.mark.parametrize("places", [(a, b) for a in PLACES for b in PLACES])
def test_tokens_of_two_active_adapters_stand_side_by_side(order, past, places, pixels):
    kinds = {name: (place, depth) for name, place, depth in zip(TOKENS, places, past, strict=True)}
    base = make_model()
    model = get_peft_model(copy.deepcopy(base), tokens_config("first", *kinds["first"]), "first").eval()
    model.add_adapter("second", tokens_config("second", *kinds["second"]))
    model.base_model.set_adapter(order)
    with torch.no_grad():
        expected = plain_logits(base, pixels, [(tokens_of(model, name), *kinds[name]) for name in order])
        torch.testing.assert_close(forward(model, pixels), expected)
        with fast_forward(model) as fast:
            torch.testing.assert_close(forward(model, pixels), expected)
        assert fast.reason is None
        states = model(pixels, output_hidden_states=True).hidden_states
    assert states[-1].shape[1] == 5


def test_the_order_of_activation_is_the_order_of_the_tokens(pixels):
    model = get_peft_model(make_model(), tokens_config("first", "after_cls", "drop"), "first").eval()
    model.add_adapter("second", tokens_config("second", "after_cls", "drop"))
    read = []
    model.base_model.model.vit.layers[0].layernorm_before.base_layer.register_forward_pre_hook(
        lambda module, args: read.append(args[0][0, 1:6])
    )
    tokens = {name: tokens_of(model, name)[0] for name in TOKENS}
    for order in (["first", "second"], ["second", "first"]):
        model.base_model.set_adapter(order)
        forward(model, pixels)
        torch.testing.assert_close(read.pop(), torch.cat([tokens[name] for name in order]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_adapters_tokens_are_seen_through_a_mask(attention, pixels):
    base = make_model()
    base.set_attn_implementation(attention)
    model = get_peft_model(base, tokens_config("first", "after_cls", "drop"), "first").eval()
    model.add_adapter("second", tokens_config("second", "last", "carry"))
    model.base_model.set_adapter(["first", "second"])
    with torch.no_grad():
        expected = forward(model, pixels)
        ones = torch.ones(len(pixels), 5)
        torch.testing.assert_close(model(pixels, attention_mask=ones).logits, expected)


def test_transformers_activates_two_adapters_with_tokens(pixels):
    base = make_model()
    vit = copy.deepcopy(base)
    for name in TOKENS:
        vit.add_adapter(tokens_config(name, "after_cls", "drop"), adapter_name=name)
    vit.eval().set_adapter(["second", "first"])
    vpts = {name: {} for name in TOKENS}
    for layer in [module for module in vit.modules() if isinstance(module, NoahLayer)]:
        for name, vpt in layer.noah_vpt.items():
            vpts[name][vpt.block] = vpt.tokens.detach()
    with torch.no_grad():
        expected = plain_logits(base, pixels, [(vpts[name], "after_cls", "drop") for name in ("second", "first")])
        torch.testing.assert_close(forward(vit, pixels), expected)


def test_both_adapters_tokens_train_and_a_mixed_batch_takes_one_of_them_each(pixels):
    _, model = build("vpt", modules_to_save=[])
    model.add_adapter("second", make_config("vpt", modules_to_save=[]))
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = forward(model.eval(), pixels).detach()
    model.base_model.set_adapter(["default", "second"])
    forward(model.train(), pixels).square().sum().backward()
    assert all(weight.grad.abs().max() > 0 for name, weight in model.named_parameters() if ".tokens" in name)
    with torch.no_grad():
        mixed = forward(model.eval(), pixels, adapter_names=["second", "default", "second"])
    expected = torch.stack([alone["second"][0], alone["default"][1], alone["second"][2]])
    torch.testing.assert_close(mixed, expected)


def test_shapes_are_not_fixed_while_two_adapters_have_tokens():
    _, model = build("vpt", modules_to_save=[])
    model.add_adapter("second", make_config("vpt", modules_to_save=[]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="adapters 'default', 'second' are active, and more than one has VPT tokens"):
        with model.base_model.fixed_shapes("default"):
            pass


def test_two_active_adapters_with_classifiers_are_refused():
    _, model = build("lora")
    model.add_adapter("second", make_config("adapter"))
    with pytest.raises(ValueError, match="Only one adapter can be set at a time"):
        model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]
