"""The built-in prompt modules beyond the paper's, each against its equation, and with what all modules can do."""

import functools

import pytest
import reference
import torch
from conftest import make_model
from elastic_checks import (
    assert_fast_and_fixed_shapes_keep_outputs,
    assert_subnets_are_cut_out_saved_and_loaded,
    logits,
)
from peft import get_peft_model

from peft_noah import Architecture, NoahConfig, SearchSpace, search
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.labels import module_colour, module_label
from peft_noah.tuner.prompts import PROMPT_MODULES, find_prompt_module

BRANCHES = {"vit": ("attention.o_proj", "mlp.fc2"), "dinov2": ("layer_scale1", "layer_scale2")}
LINEARS = tuple(f"attention.{name}_proj" for name in "qkvo") + ("mlp.fc1", "mlp.fc2")
OUTPUTS = {"vit": ("attention.o_proj", "mlp.fc2"), "dinov2": ("attention.o_proj", "mlp.fc2")}
AFFINE = {"vit": (*LINEARS, "layernorm_before", "layernorm_after"), "dinov2": (*LINEARS, "norm1", "norm2")}

#: by row: its leaves in a block of each family, its equation, the dims tried, its label
MODULES = {
    "adapter_plus": (BRANCHES, reference.adapter_plus, (1, 3), "Adapter+ (width)"),
    "ssf": (AFFINE, reference.ssf, (1,), "SSF (on)"),
    "bitfit": (AFFINE, reference.bitfit, (1,), "BitFit (on)"),
    "rep_adapter": (OUTPUTS, reference.rep_adapter, (1, 3), "RepAdapter (width)"),
}
ROWS = pytest.mark.parametrize("row", MODULES)
FAMILIES = pytest.mark.parametrize("family", ["vit", "dinov2"])


def build(family="vit", **options):
    torch.manual_seed(0)
    options = {"init_weights": False, "dropout": 0.0, "drop_path": 0.0, **options}
    return get_peft_model(make_model(family), NoahConfig(**options), autocast_adapter_dtype=False).double().eval()


def supernet(row, family="vit", **options):
    return build(family, search_space=space(row), **options)


def space(row):
    dims = {"lora": (1, 3), row: MODULES[row][2], "vpt": (2,)}
    return SearchSpace(4, dims, {row: (0, 2, 4)})


@ROWS
@FAMILIES
def test_it_computes_its_equation_at_its_leaves_and_counts(row, family, pixels):
    leaves, equation, dims, _ = MODULES[row]
    model = build(family, architecture={row: [dims[-1], 0, dims[0], dims[-1]]})
    blocks, changes = BACKBONES[family].block_names(model.base_model.model), {}
    for key, layer in model.noah_layers():
        (module,) = layer.prompt_modules("default")
        assert key.removeprefix(f"{blocks[module.block]}.") in leaves[family]
        changes[key] = functools.partial(equation, **dict(module.named_parameters()))
    assert len(changes) == 3 * len(leaves[family])
    expected = reference.hooked_logits(make_model(family).double(), changes, pixels.double())
    torch.testing.assert_close(logits(model, pixels), expected)
    assert not torch.allclose(expected, logits(make_model(family).double(), pixels))
    assert model.count_parameters() == sum(p.numel() for n, p in model.named_parameters() if ".noah_" in n)


@ROWS
def test_subnets_are_cut_out_bit_for_bit_saved_and_loaded(row, pixels, tmp_path):
    assert_subnets_are_cut_out_saved_and_loaded(supernet(row), space(row), pixels, tmp_path)


@ROWS
@FAMILIES
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_fast_forward_and_fixed_shapes_keep_logits_and_gradients(row, family, recipe, pixels):
    assert_fast_and_fixed_shapes_keep_outputs(supernet(row, family, recipe=recipe), space(row), pixels)


@ROWS
def test_it_trains_and_is_searched(row, pixels):
    model = supernet(row)
    model.train()
    logits(model, pixels).square().sum().backward()
    weights = {n: p.grad for n, p in model.named_parameters() if f".noah_{row}." in n}
    assert weights and all(grad is not None and grad.abs().sum() > 0 for grad in weights.values())
    result = search(space(row), lambda a: sum(a[row]), model.count_parameters, budget=4_000)
    assert set(result.best.architecture) == set(space(row).dims)


@ROWS
@FAMILIES
def test_it_starts_at_or_near_the_frozen_model(row, family, pixels):
    model = build(family, init_weights=True, architecture={row: [MODULES[row][2][-1]] * 4})
    torch.testing.assert_close(
        logits(model, pixels), logits(make_model(family).double(), pixels), atol=1e-2, rtol=1e-2
    )


@ROWS
def test_it_joins_other_adapters_and_batches(row, pixels):
    model = build(architecture={row: [1] * 4}, modules_to_save=[])
    model.add_adapter("other", NoahConfig(architecture=Architecture.uniform(4, lora=2), init_weights=False,
                                          modules_to_save=[]))  # fmt: skip
    model.double().eval()
    first = logits(model, pixels)
    model.set_adapter("other")
    second = logits(model, pixels)
    model.base_model.set_adapter(["default", "other"])
    assert not torch.allclose(logits(model, pixels), first)
    names = ["other", "default", "other"]
    mixed = model(pixel_values=pixels.double(), adapter_names=names).logits
    torch.testing.assert_close(mixed, torch.stack([second[0], first[1], second[2]]))


@ROWS
def test_it_has_a_label_a_colour_and_no_part_in_spaces_that_do_not_name_it(row):
    assert module_label(row) == MODULES[row][3]
    assert module_colour(row) not in {None, *(cls.colour for name, cls in PROMPT_MODULES.items() if name != row)}
    for name in ("vtab", "few_shot", None):
        assert row not in build(search_space=name).get_architecture()
    dims = find_prompt_module(row).dims or (1, 5, 10)
    assert SearchSpace.vtab(4, modules=("lora", row)).dims == {"lora": (1, 5, 10), row: dims}


def test_adapter_plus_starts_as_in_its_paper_whatever_the_recipe():
    for recipe in ("paper", "released"):
        model = get_peft_model(make_model(), NoahConfig(recipe=recipe, architecture={"adapter_plus": [8] * 4}))
        modules = list(model.prompt_modules("default"))
        assert len(modules) == 8
        matrices = torch.cat([weight.flatten() for module in modules for weight in (module.down, module.up)])
        assert matrices.abs().max() <= 0.02 and 0.008 < matrices.std() < 0.0095  # what cutting off leaves of 0.01
        for module in modules:
            assert not module.down_bias.any() and not module.up_bias.any() and (module.scale == 1).all()


@pytest.mark.parametrize("row", ["ssf", "bitfit"])
def test_one_that_is_there_or_not_takes_no_larger_dim(row):
    with pytest.raises(ValueError, match=f"{row} is there or not: its dim is 1 or 0, not 3"):
        get_peft_model(make_model(), NoahConfig(architecture={row: [1, 0, 3, 1]}))


@pytest.mark.parametrize("row", ["ssf", "bitfit", "rep_adapter"])
def test_without_training_it_changes_nothing(row, pixels):
    model = get_peft_model(make_model(), NoahConfig(architecture={row: [1] * 4})).eval()
    assert torch.equal(model(pixel_values=pixels).logits, make_model()(pixel_values=pixels).logits)


def test_ssf_starts_as_in_its_paper_where_the_recipe_says_normal():
    config = NoahConfig(recipe="released", architecture={"ssf": [1] * 4})
    weights = [p.flatten() for n, p in get_peft_model(make_model(), config).named_parameters() if ".noah_" in n]
    assert 0.019 < torch.cat(weights).std() < 0.021
