"""Prefixes as keys and values alone: their equation, every mask, decoders with a cache, and what all modules can do."""

import copy
import functools
import pickle

import pytest
import torch
from conftest import SIZES, make_model
from elastic_checks import (
    assert_fast_and_fixed_shapes_keep_outputs,
    assert_subnets_are_cut_out_saved_and_loaded,
    logits,
)
from families import SIDE, make_family
from peft import PeftModel, get_peft_model
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    DynamicCache,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from peft_noah import Architecture, NoahConfig, SearchSpace
from peft_noah.fast import fast_forward
from peft_noah.tuner.backbones import BACKBONES, Backbone
from peft_noah.tuner.backbones.images import read_images
from peft_noah.tuner.prompts.prefix import PrefixConfig

TEXT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50}
DECODER = Backbone(
    blocks="layers",
    projections={"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"},
    linears={"output": "self_attn.o_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"},
    attention_output="self_attn.o_proj",
    mlp_output="mlp.c_proj",
    norm="input_layernorm",
    head=(),
)
FAMILIES = pytest.mark.parametrize("family", ["vit", "dinov2"])


def build(model, **options):
    torch.manual_seed(0)
    options = {"init_weights": False, **options}
    return get_peft_model(model, NoahConfig(**options), autocast_adapter_dtype=False).double().eval()


def decoder(**options):
    torch.manual_seed(1)
    config = Starcoder2Config(
        **TEXT,
        num_key_value_heads=2,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        sliding_window=None,
        **options,
    )
    return Starcoder2ForCausalLM(config).double().eval()


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(BACKBONES, "starcoder2", DECODER)


def weights(model, block):
    """Keys and values of a block's prefix, (m, H d)."""
    (module,) = (m for m in model.prompt_modules("default") if m.block == block)
    return module.keys, module.values


def attend(attention, keys, values, hidden, mask=None, **kwargs):
    """The equation, for a block of a ViT."""
    heads = attention.num_attention_heads
    query, key, value = (
        layer(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    more = [
        rows.view(1, len(rows), heads, -1).transpose(1, 2).expand(len(hidden), -1, -1, -1) for rows in (keys, values)
    ]
    key, value = torch.cat([more[0], key], 2), torch.cat([more[1], value], 2)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return attention.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2)), None


@FAMILIES
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_it_computes_its_equation_and_counts(family, implementation, pixels):
    base = make_model(family)
    base.set_attn_implementation(implementation)
    model = build(base, architecture={"prefix": [3, 0, 2, 1]})
    expected = make_model(family).double()
    for block, name in enumerate(BACKBONES[family].block_names(expected)):
        if block != 1:
            attention = expected.get_submodule(name).attention
            attention.forward = functools.partial(attend, attention, *weights(model, block))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, pixels), logits(expected, pixels))
    assert not torch.allclose(logits(model, pixels), logits(make_model(family).double(), pixels))
    assert model.count_parameters() == 2 * 24 * (3 + 2 + 1)


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_slices_are_standalone_and_the_fast_forward_and_fixed_shapes_keep_outputs(recipe, pixels, tmp_path):
    space = SearchSpace(4, {"lora": (1, 3), "prefix": (0, 2, 3), "vpt": (2,)})
    model = build(make_model(), search_space=space, recipe=recipe, dropout=0.0, drop_path=0.0)
    assert_subnets_are_cut_out_saved_and_loaded(model, space, pixels, tmp_path)
    assert_fast_and_fixed_shapes_keep_outputs(model, space, pixels)


def test_keys_behind_the_active_ones_are_hidden_in_eager_attention_too(pixels):
    base = make_model()
    base.set_attn_implementation("eager")
    model = build(base, architecture={"prefix": [3, 3, 3, 3]})
    model.set_architecture({"prefix": [2, 0, 1, 3]})
    expected = logits(model, pixels)
    with model.fixed_shapes():
        torch.testing.assert_close(logits(model, pixels), expected)


def test_it_trains_and_leaves_the_backbone_as_it_was(pixels):
    base = make_model()
    config = base.vit.layers[0].attention.config
    model = build(base, architecture={"prefix": [2] * 4})
    logits(model.train(), pixels).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if ".noah_prefix." in n)
    assert base.config._attn_implementation == "sdpa" and base.config is config
    seen = base.vit.layers[0].attention.config
    assert isinstance(seen, PrefixConfig) and seen.hidden_size == 24 and not seen.qkv_bias == "nothing"
    twin = copy.deepcopy(model).eval()
    assert torch.equal(logits(twin, pixels), logits(model.eval(), pixels))
    inner = twin.base_model.model
    assert inner.vit.layers[0].attention.config.config is inner.config
    assert torch.equal(logits(pickle.loads(pickle.dumps(twin)), pixels), logits(model, pixels))
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, pixels), logits(make_model().double(), pixels))
    with pytest.raises(ValueError, match="has active prefix modules"):
        model.merge_and_unload()
    plain = model.unload()
    assert all(layer.attention.config is plain.config for layer in plain.vit.layers)
    torch.testing.assert_close(logits(plain, pixels), logits(make_model().double(), pixels))


def test_adapters_stand_side_by_side_and_share_a_batch_where_their_lengths_are_equal(pixels):
    model = build(make_model(), architecture={"prefix": [2] * 4}, modules_to_save=[])
    for name, dims in (("other", [2] * 4), ("longer", [2, 2, 2, 3])):
        torch.manual_seed(len(name))
        model.add_adapter(name, NoahConfig(architecture={"prefix": dims}, init_weights=False, modules_to_save=[]))
    model.double().eval()
    single = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        single[name] = logits(model, pixels)
    names = ["other", "default", "other"]
    mixed = model(pixel_values=pixels.double(), adapter_names=names).logits
    torch.testing.assert_close(mixed, torch.stack([single[name][row] for row, name in enumerate(names)]))
    with pytest.raises(ValueError, match="in block 3 they have prefixes of 2 and 3"):
        model(pixel_values=pixels.double(), adapter_names=["default", "longer", "longer"])
    model.base_model.set_adapter(["default", "other"])
    both = logits(model, pixels)
    with fast_forward(model) as fast:
        torch.testing.assert_close(logits(model, pixels), both)
        assert fast.reason is None
    assert not torch.allclose(both, single["default"])


def test_a_bias_of_each_pair_of_positions_has_none_for_it(pixels):
    torch.manual_seed(0)
    config = BeitConfig(**SIZES, num_labels=5, use_relative_position_bias=True)
    model = build(BeitForImageClassification(config), architecture={"prefix": [3] * 4, "lora": [1] * 4})
    for layer in model.base_model.model.beit.layers:
        torch.nn.init.normal_(layer.relative_position_bias.relative_position_bias_table)
    expected = logits(model, pixels)
    with fast_forward(model) as fast:
        torch.testing.assert_close(logits(model, pixels), expected)
        assert fast.reason is None
    model.base_model.model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, pixels), expected)


def test_the_fast_forward_has_it_in_bfloat16_too(pixels):
    model = build(make_model(), architecture={"prefix": [8] * 4}).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(pixel_values=pixels).logits
        with fast_forward(model):
            found = model(pixel_values=pixels).logits
            with model.disable_adapter():
                without = model(pixel_values=pixels).logits
    assert (found - expected).abs().max() < 0.2 * (without - expected).abs().max()


def test_padding_masks_grow_with_it():
    torch.manual_seed(0)
    text = BertForSequenceClassification(BertConfig(**TEXT, num_labels=3)).double().eval()
    model = build(text, architecture={"prefix": [2, 0, 3]})
    tokens = torch.randint(1, 50, (1, 5))
    padded = torch.nn.functional.pad(tokens, (0, 4))
    mask = (padded > 0).long()
    expected = model(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_in_a_decoder_it_is_a_cache_that_was_there_before_without_moving_positions(known, implementation):
    model = build(decoder(attn_implementation=implementation), architecture={"prefix": [3, 3, 3]})
    tokens = torch.randint(1, 50, (2, 6))
    cache = DynamicCache()
    for block in range(3):  # two heads of keys serve four of queries
        cache.update(
            *(rows.view(1, 3, 2, 6).transpose(1, 2).expand(2, -1, -1, -1) for rows in weights(model, block)), block
        )
    expected = decoder(attn_implementation=implementation)(
        input_ids=tokens, past_key_values=cache, position_ids=torch.arange(6)[None].expand(2, -1)
    ).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected)
    assert not torch.allclose(expected, decoder()(input_ids=tokens).logits)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_is_generation_without(known, cache, tmp_path):
    model = build(decoder(), architecture={"lora": [2] * 3, "prefix": [3, 0, 2]})
    tokens = torch.randint(1, 50, (2, 5), generator=torch.Generator().manual_seed(0))
    tokens[0, :2] = 0  # padded in front
    options = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**options, use_cache=False)
    assert torch.equal(model.generate(**options, cache_implementation=None if cache == "dynamic" else cache), expected)
    alone = model.generate(input_ids=tokens[:1, 2:], max_new_tokens=6, do_sample=False)
    assert torch.equal(alone[0, 3:], expected[0, 5:])
    if cache == "dynamic":
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(decoder(), tmp_path, autocast_adapter_dtype=False).double().eval()
        assert torch.equal(loaded.generate(**options), expected)


def test_a_family_whose_keys_have_no_linear_of_their_own_is_refused(known, monkeypatch):
    monkeypatch.setitem(BACKBONES, "starcoder2", Backbone(**{**vars(DECODER), "projections": {}}))
    with pytest.raises(ValueError, match="'prefix' cannot be placed: the attention of this family is not computed by"):
        build(decoder(), architecture=Architecture.uniform(3, prefix=2))


@pytest.mark.parametrize("family", ["clip", "siglip2", "swin"])
def test_it_works_in_families_where_tokens_do_not_and_in_those_without_a_class_token(family):
    base = make_family(family)
    read_images(base, (SIDE, SIDE))
    num_blocks = len(BACKBONES[base.config.model_type].block_names(base))
    pixels = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    model = build(base, architecture={"prefix": [3] * num_blocks})
    expected = logits(model, pixels)
    with fast_forward(model):
        torch.testing.assert_close(logits(model, pixels), expected)
    with model.disable_adapter():
        assert not torch.allclose(logits(model, pixels), expected)
    model.base_model.model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, pixels), expected)


def test_masks_that_cannot_grow_are_said(known):
    model = build(decoder(), architecture={"prefix": [2] * 3})
    attention = model.base_model.model.model.layers[0].self_attn
    heads = [torch.zeros(1, n, 4, 6, dtype=torch.float64) for n in (4, 2, 2)]
    from peft_noah.tuner.prompts.prefix import attend_with_prefixes

    with pytest.raises(ValueError, match="prefixes cannot be used in this call: continuous batching"):
        attend_with_prefixes(attention, *heads, None, cache=object())
    with pytest.raises(ValueError, match="masks of 'sdpa' attention cannot be extended"):
        attend_with_prefixes(attention, *heads, object())
