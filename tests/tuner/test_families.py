"""Each family of image classifiers that is built in, with transformers' own class: the whole life of an adapter."""

import random

import pytest
import torch
from families import BLOCKS, FAMILIES, SIDE, WIDTH, make_family
from peft import PeftModel, get_peft_model
from transformers import CLIPModel, DINOv3ViTConfig, DINOv3ViTModel

from peft_noah import Architecture, NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.searching.budget import scaled_budget
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.backbones.images import image_size, read_images

#: families for which the fast forward is off, with words of the reason
PLAIN = {
    "data2vec-vision": "hands nothing that a call says on to its blocks",
    "swin": "shift and cut the image into windows",
    "swinv2": "shift and cut the image into windows",
    "hiera": "pool tokens by their places",
    "timm_wrapper": "its blocks are timm's own",
}
#: those whose blocks have no place for tokens, with words of the reason; widths grow by stages in them
NO_TOKENS = {"swin": "inside windows", "swinv2": "inside windows", "hiera": "pool tokens by their places"}


def images(side=SIDE, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def make(name):
    model = make_family(name)
    read_images(model, (SIDE, SIDE))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_of_a_family_trains_is_cut_out_saved_loaded_and_runs_fast(name, tmp_path):
    pixels = images()
    model = get_peft_model(make(name), NoahConfig(init_weights=False))
    space = model.get_search_space()
    assert set(space.dims) == ({"lora", "adapter"} if name in NO_TOKENS else {"lora", "adapter", "vpt"})

    model.train()
    model(pixel_values=pixels).logits.square().sum().backward()
    lacking = [n for n, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not lacking and all(weight.grad is None for n, weight in model.named_parameters() if "base_layer" in n)

    subnet = space.sample(random.Random(1))
    model.eval().set_architecture(subnet)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        with model.disable_adapter():
            assert (model(pixel_values=pixels).logits - expected).abs().max() > 1e-4
        cut = model.extract()
        assert torch.equal(cut(pixel_values=pixels).logits, expected)
        assert model.count_parameters() == sum(w.numel() for n, w in cut.named_parameters() if ".noah_" in n)
        cut.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(make(name), tmp_path).eval()
        assert torch.equal(loaded(pixel_values=pixels).logits, expected)
        with fast_forward(loaded) as fast:
            torch.testing.assert_close(loaded(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-5)
    assert (PLAIN[name] in fast.reason) if name in PLAIN else fast.reason is None
    assert fast.comparison is None  # the package vouches for it


@pytest.mark.parametrize("name", NO_TOKENS)
def test_a_supernet_has_no_tokens_where_they_have_no_place_and_counts_by_the_width_of_each_stage(name, caplog):
    model = get_peft_model(make_family(name), NoahConfig())
    assert [record.message for record in caplog.records if NO_TOKENS[name] in record.message][0].startswith(
        "the supernet has no vpt: "
    )
    widths = BACKBONES[name].widths(model.base_model.model)
    assert widths == ((16, 16, 32) if name == "hiera" else (16, 32, 32))
    ends = (16, 32, 32)  # of what the blocks give
    adapters = Architecture(lora=[0] * 3, adapter=[3] * 3)
    assert model.count_parameters(adapters) == sum(2 * 3 * width + 3 + width for width in ends)
    assert scaled_budget(widths) == round(640_000 * sum(widths) / (768 * 12))
    with pytest.raises(ValueError, match=f"'vpt' cannot be placed: .*{NO_TOKENS[name]}.* Leave the row out"):
        get_peft_model(make_family(name), NoahConfig(architecture=Architecture.uniform(3, vpt=2)))


@pytest.mark.parametrize("name", ["hiera", "swinv2", "beit"])
def test_rows_by_site_and_affine_modules_train_in_a_family(name):
    model = get_peft_model(make(name), NoahConfig(search_space="wide", init_weights=False))
    projections = {"lora_qkv"} if name == "hiera" else {"lora_query", "lora_key", "lora_value"}
    assert set(model.get_search_space().dims) == projections | {"lora_output", "lora_fc1", "lora_fc2", "adapter_plus"}
    affine = Architecture.uniform(len(model.base_model._layout.blocks), ssf=1, bitfit=1)
    model.add_adapter("affine", NoahConfig(architecture=affine, init_weights=False))
    for adapter in ("default", "affine"):
        model.set_adapter(adapter)
        model.train()(pixel_values=images()).logits.square().sum().backward()
        weights = [w for n, w in model.named_parameters() if ".noah_" in n and adapter in n]
        assert weights and all(weight.grad.abs().max() > 0 for weight in weights)


@pytest.mark.parametrize("name", ["beit", "data2vec-vision", "clip", "siglip2", "swinv2", "hiera"])  # each in its way
def test_a_family_reads_images_of_another_size(name):
    model = make_family(name)
    read_images(model, (3 * SIDE // 2,) * 2)
    assert image_size(model.config) == (SIDE, SIDE)
    rows = {"adapter": 2} if name in NO_TOKENS else {"vpt": 2}
    blocks = len(BACKBONES[name].block_names(model))
    model = get_peft_model(model, NoahConfig(init_weights=False, architecture=Architecture.uniform(blocks, **rows)))
    with torch.no_grad():
        expected = model.eval()(pixel_values=images(3 * SIDE // 2)).logits
        with fast_forward(model):
            actual = model(pixel_values=images(3 * SIDE // 2)).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("shared", [False, True])
def test_tokens_have_no_place_among_relative_positions(recipe, shared):
    """Against attention written out: pairs with a token have no bias, all others keep theirs."""
    model = make_family("beit")
    config = model.config
    config.use_relative_position_bias, config.use_shared_relative_position_bias = not shared, shared
    torch.manual_seed(0)
    model = type(model)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    rows = Architecture(vpt=[3] + [0] * (BLOCKS - 1))
    model = get_peft_model(model, NoahConfig(recipe=recipe, architecture=rows, init_weights=False)).eval()
    beit = model.base_model.model.beit
    block, seen = beit.layers[0], {}
    block.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    block.register_forward_hook(lambda _, args, output: seen.update(y=output))
    with torch.no_grad():
        model(pixel_values=images())
        x, attention = seen["x"], block.attention
        first = 1 if recipe == "paper" else x.shape[1] - 3
        h = block.layernorm_before(x)
        q, k, v = (
            f(h).unflatten(-1, (2, -1)).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        table = beit.shared_position_bias if shared else block.relative_position_bias
        image = [i for i in range(x.shape[1]) if not first <= i < first + 3]
        bias = torch.zeros(1, 2, x.shape[1], x.shape[1])
        bias[:, :, torch.tensor(image)[:, None], torch.tensor(image)] = table.forward((2, 2))
        weights = (q @ k.transpose(2, 3) * attention.scaling + bias).softmax(-1)
        y = attention.o_proj((weights @ v).transpose(1, 2).flatten(2)) * block.lambda_1 + x
        y = block.mlp(block.layernorm_after(y)) * block.lambda_2 + y
        kept = y if recipe == "released" else y[:, image]
    torch.testing.assert_close(seen["y"][:, : len(image)], kept[:, : len(image)], rtol=1e-4, atol=1e-5)


def test_a_pair_of_models_is_told_to_wrap_its_image_half():
    pair = CLIPModel(make_family("clip").config)
    with pytest.raises(ValueError, match=r"model.vision_model = get_peft_model\(model.vision_model"):
        get_peft_model(pair, NoahConfig())
    pair.vision_model = get_peft_model(pair.vision_model, NoahConfig(init_weights=False))
    assert pair.vision_model.get_architecture().num_blocks == BLOCKS
    assert pair.get_image_features(pixel_values=images()).pooler_output.shape == (2, pair.config.projection_dim)


def test_dinov3_has_its_tokens_before_the_patches_whose_positions_are_rotations():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    plain = DINOv3ViTModel(DINOv3ViTConfig(**sizes, image_size=SIDE, patch_size=8, num_register_tokens=2)).eval()
    outputs = []
    for position in ("after_cls", "last"):
        rows = Architecture.uniform(BLOCKS, lora=2, adapter=2, vpt=2)
        torch.manual_seed(1)
        model = get_peft_model(plain, NoahConfig(architecture=rows, vpt_position=position, init_weights=False)).eval()
        outputs.append(model(pixel_values=images()).last_hidden_state)
        with fast_forward(model) as fast:
            torch.testing.assert_close(
                model(pixel_values=images()).last_hidden_state, outputs[-1], rtol=1e-4, atol=1e-5
            )
        assert fast.reason is None
        plain = model.unload()
    assert outputs[0].shape == (2, 7, WIDTH) and torch.equal(*outputs)
