"""Rows for one Linear of each block, such as ``lora_fc1``: beside or instead of what ``target_modules`` names."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from elastic_checks import (
    assert_fast_and_fixed_shapes_keep_outputs,
    assert_subnets_are_cut_out_saved_and_loaded,
    logits,
)
from peft import LoraConfig, PeftModel, get_peft_model
from reference import reference_logits
from transformers import Dinov2Config, Dinov2ForImageClassification

from peft_noah import Architecture, Backbone, NoahConfig, PromptModule, SearchSpace, register_prompt_module, search
from peft_noah.fast import check_backbone
from peft_noah.formatting import module_order
from peft_noah.plugins import own_dims, plugins_among
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.labels import module_colour, module_label
from peft_noah.tuner.prompts import PROMPT_MODULES, Lora, find_prompt_module, site_of

SITES = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "output": "attention.o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
ROWS = [f"lora_{site}" for site in SITES]
SPACE = SearchSpace(4, {**dict.fromkeys(ROWS, (1, 3)), "adapter": (2,), "vpt": (2,)}, dict.fromkeys(ROWS, (0, 2, 4)))
FAMILIES = pytest.mark.parametrize("family", ["vit", "dinov2"])


@pytest.fixture(autouse=True)
def registered():
    modules, backbones = dict(PROMPT_MODULES), dict(BACKBONES)
    yield
    for registry, before in ((PROMPT_MODULES, modules), (BACKBONES, backbones)):
        registry.clear()
        registry.update(before)


def build(family="vit", base=None, **options):
    torch.manual_seed(0)
    options = {"init_weights": False, "dropout": 0.0, "drop_path": 0.0, **options}
    base = make_model(family) if base is None else base
    return get_peft_model(base, NoahConfig(**options), autocast_adapter_dtype=False).double().eval()


def test_a_row_is_a_module_and_a_site():
    assert find_prompt_module("lora_fc1") is Lora and site_of("lora_fc1") == "fc1"
    assert site_of("lora") is None and find_prompt_module("vpt_fc1") is None and find_prompt_module("loras") is None
    assert [module_label(row) for row in ("lora_fc1", "lora")] == ["LoRA fc1 (rank)", "LoRA (rank)"]
    assert module_colour("lora_fc1") == module_colour("lora")
    assert module_order(["vpt", "lora_fc1", "a_fc1", "lora_query", "a", "lora"]) == [
        "lora", "lora_query", "lora_fc1", "vpt", "a", "a_fc1"
    ]  # fmt: skip


@FAMILIES
def test_each_sits_on_its_linear_alone_and_computes_the_formula(family):
    architecture = {row: [0, place + 1, 0, 0] for place, row in enumerate(ROWS)}
    model = build(family, architecture=architecture, lora_scale=2.0)
    blocks = BACKBONES[family].block_names(model.base_model.model)
    for place, (site, path) in enumerate(SITES.items()):
        layer = model.base_model.model.get_submodule(f"{blocks[1]}.{path}")
        (lora,), x = layer.prompt_modules("default"), torch.randn(2, 5, layer.in_features).double()
        assert lora.row == f"lora_{site}" and lora.down.shape == (place + 1, layer.in_features)
        expected = F.linear(x, layer.base_layer.weight + 2 * lora.up.T @ lora.down, layer.base_layer.bias)
        torch.testing.assert_close(layer(x), expected)
    assert len(list(model.noah_layers())) == 6
    assert model.count_parameters() == sum(p.numel() for n, p in model.named_parameters() if ".noah_" in n)


@FAMILIES
def test_rows_for_query_and_key_equal_the_one_row_for_both(family, pixels):
    model = build(family, architecture=Architecture.uniform(4, lora=3, adapter=2, vpt=2))
    apart = build(family, architecture=Architecture.uniform(4, lora_query=3, lora_key=3, adapter=2, vpt=2))
    rows = {"q_proj": "lora_query", "k_proj": "lora_key"}
    ours = dict(apart.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for leaf, row in rows.items():
                name = name.replace(f"{leaf}.noah_lora", f"{leaf}.noah_{row}")
            ours[name].copy_(weight)
    assert torch.equal(logits(apart, pixels), logits(model, pixels))
    expected = reference_logits(make_model(family).double(), model, model.get_architecture(), pixels.double())
    torch.testing.assert_close(logits(apart, pixels), expected)


def test_subnets_are_cut_out_bit_for_bit_saved_and_loaded(pixels, tmp_path):
    assert_subnets_are_cut_out_saved_and_loaded(build(search_space=SPACE), SPACE, pixels, tmp_path)


@FAMILIES
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_fast_forward_and_fixed_shapes_keep_logits_and_gradients(family, recipe, pixels):
    model = build(family, search_space=SPACE, recipe=recipe).train()
    assert_fast_and_fixed_shapes_keep_outputs(model, SPACE, pixels, subnets=2)


def test_they_are_searched():
    model = build(search_space=SPACE)
    result = search(SPACE, lambda a: sum(a["lora_fc1"]) - sum(a["lora_key"]), model.count_parameters, budget=3_000)
    assert set(result.best.architecture) == set(SPACE.dims)


@FAMILIES
def test_they_merge_and_are_exported_as_pefts_lora_with_a_rank_for_each(family, pixels, tmp_path):
    model = build(family, architecture={row: [place + 1, 0, 2, 1] for place, row in enumerate(ROWS)}, lora_scale=0.5)
    expected = logits(model, pixels)
    exported = model.export_lora()
    config = exported.peft_config["default"]
    assert type(config) is LoraConfig and {*config.rank_pattern.values(), config.r} == {1, 2, 3, 4, 5, 6}
    exported.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path, autocast_adapter_dtype=False).double().eval()
    torch.testing.assert_close(logits(loaded, pixels), expected)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True), pixels), expected)


def test_each_has_a_down_matrix_of_its_own_also_where_the_recipe_shares_one(pixels):
    architecture = {"lora_query": [2] * 4, "lora_key": [3] * 4}
    model = build(recipe="released", architecture=architecture)
    assert all(module.owner is None for module in model.prompt_modules("default"))
    model = build(recipe="released", architecture={"lora": [2] * 4, "lora_fc1": [3] * 4})
    owners = {key: layer.prompt_modules("default")[0].owner is not None for key, layer in model.noah_layers()}
    assert [key.rpartition(".")[2] for key, lent in owners.items() if lent] == ["k_proj", "v_proj"] * 4


def test_excluded_leaves_carry_none(pixels):
    model = build(architecture={"lora_fc1": [2] * 4, "lora_query": [2] * 4}, exclude_modules=["fc1"])
    assert {key.rpartition(".")[2] for key, _ in model.noah_layers()} == {"q_proj"}
    assert model.get_architecture()["lora_fc1"] == (0,) * 4


@pytest.mark.parametrize("targets", [None, "all-linear", ["query", "key"]])
def test_two_rows_on_one_leaf_are_refused(targets):
    config = NoahConfig(architecture={"lora_key": [0, 2, 0, 0], "lora": [1] * 4}, target_modules=targets)
    with pytest.raises(
        ValueError, match=r"rows 'lora' and 'lora_key' both place .* on 'vit.layers.1.attention.k_proj'"
    ):
        get_peft_model(make_model(), config)
    config = NoahConfig(architecture={"lora_key": [0, 2, 0, 0], "lora": [1, 0, 1, 1]}, target_modules=targets)
    get_peft_model(make_model(), config)


def test_a_linear_that_the_family_lacks_is_refused_with_a_list_of_those_it_has():
    with pytest.raises(ValueError, match=r"called 'gate', .* \(they have query, key, value, output, fc1, fc2\)"):
        get_peft_model(make_model(), NoahConfig(architecture={"lora_gate": [1] * 4}))
    with pytest.raises(ValueError, match="called 'norm'"):  # a site of other modules
        get_peft_model(make_model(), NoahConfig(architecture={"lora_norm": [1] * 4}))
    with pytest.raises(ValueError, match="'lora_fc1' cannot be placed: nothing is known about the blocks"):
        get_peft_model(
            torch.nn.Sequential(torch.nn.Linear(2, 2)),
            NoahConfig(architecture={"lora_fc1": [1]}, target_modules=["0"]),
        )
    with pytest.raises(ValueError, match="unknown prompt module 'vpt_fc1'"):
        get_peft_model(make_model(), NoahConfig(architecture={"vpt_fc1": [1] * 4}))


def test_a_family_says_what_it_has():
    BACKBONES["vit"] = Backbone(
        blocks="layers", mlp_output="mlp.fc2", norm="layernorm_before", linears={"fc1": "mlp.activation_fn"}
    )
    with pytest.raises(ValueError, match=r"called 'fc2', .* \(they have query, key, value, fc1\)"):
        get_peft_model(make_model(), NoahConfig(architecture={"lora_fc2": [1] * 4}))
    with pytest.raises(ValueError, match=r"the 'fc1' of its family, is a GELUActivation, but lora_fc1 can only"):
        get_peft_model(make_model(), NoahConfig(architecture={"lora_fc1": [1] * 4}))
    assert "mlp.activation_fn" in check_backbone(make_model()).sites.values()


def test_the_gated_mlp_of_some_models_of_a_family_has_the_same_sites():
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=8, use_swiglu_ffn=True
    )
    rows = Architecture.uniform(2, lora_gate=1, lora_fc1=1, lora_fc2=1)
    model = build(base=Dinov2ForImageClassification(config), architecture=rows)
    assert {key.partition(".mlp.")[2] for key, _ in model.noah_layers()} == {"gate_proj", "up_proj", "down_proj"}


def test_target_modules_know_all_sites_by_name():
    model = build(architecture={"lora": [2] * 4}, target_modules=["output", "fc1", "query"])
    assert {key.rpartition(".")[2] for key, _ in model.noah_layers()} == {"q_proj", "o_proj", "fc1"}


def test_a_module_from_outside_has_rows_by_site_too(pixels):
    @register_prompt_module
    class Halved(PromptModule):
        name, site, dims, is_tokenwise = "halved", "projection", (1,), True

        def shapes(self, dim):
            return {"factor": (dim, self.out_features)}

        def reset_parameters(self, config):
            torch.nn.init.constant_(self.factor, -0.5)

        def forward(self, x, y):
            return y + y * self.active("factor")

    space = SearchSpace.vtab(4, modules=("lora", "halved_fc1"))
    assert space.dims["halved_fc1"] == own_dims("halved_fc1") == (1,)
    model = build(search_space=space)
    assert model.peft_config["default"].plugins == plugins_among(["halved_fc1"]) == {"halved_fc1": __name__}
    layer = model.base_model.model.vit.layers[0].mlp.fc1
    x = torch.randn(2, 24).double()
    torch.testing.assert_close(layer(x), 0.5 * layer.base_layer(x))
