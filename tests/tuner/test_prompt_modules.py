"""Prompt modules that the package does not know: one at each kind of site, registered in the test."""

import copy
import json
import random
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from elastic_checks import assert_fast_and_fixed_shapes_keep_outputs, logits
from peft import PeftModel, get_peft_model
from torch import nn

from peft_noah import NoahConfig, PromptModule, SearchSpace, random_search, register_prompt_module, search
from peft_noah.fast import fast_forward
from peft_noah.searching.design import Design
from peft_noah.searching.race import Race, RaceSettings
from peft_noah.searching.result import SearchResult
from peft_noah.tuner.adapter_files import load_adapter
from peft_noah.tuner.layer import NoahLayer
from peft_noah.tuner.prompts import PROMPT_MODULES

PLUGINS = ("parallel", "columns", "tap", "shift")
PAPER = ["lora", "adapter", "vpt"]


class Parallel(PromptModule):
    """Beside a projection, and not linear in its input."""

    name = "parallel"
    site = "projection"
    is_tokenwise = True

    def shapes(self, dim):
        return {"down": (dim, self.in_features), "up": (dim, self.out_features)}

    def reset_parameters(self, config):
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, x, y):
        return y + torch.relu(F.linear(x, self.active("down"))) @ self.active("up")


class Columns(PromptModule):
    """Changes the first columns of a projection's weight: linear, so that it can be merged."""

    name = "columns"
    site = "projection"
    is_tokenwise = True
    is_linear = True

    def shapes(self, dim):
        return {"up": (dim, self.out_features)}

    def reset_parameters(self, config):
        nn.init.normal_(self.up, std=0.3)

    def forward(self, x, y):
        up = self.active("up")
        return y + x[..., : len(up)] @ up

    def delta_weight(self):
        up = self.active("up")
        return F.pad(up, (0, 0, 0, self.in_features - len(up))).T


class Tap(PromptModule):
    """Behind the MLP, of the input of its last layer, whose width differs from that of the output."""

    name = "tap"
    site = "mlp_output"
    is_tokenwise = True

    def shapes(self, dim):
        return {"down": (dim, self.in_features), "up": (dim, self.out_features)}

    def reset_parameters(self, config):
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)

    def forward(self, x, y):
        return y + F.linear(x, self.active("down")) @ self.active("up")


class Shift(PromptModule):
    """Adds to the first features of the block's normed input."""

    name = "shift"
    site = "norm"
    is_tokenwise = True

    def shapes(self, dim):
        return {"bias": (dim,)}

    def reset_parameters(self, config):
        nn.init.normal_(self.bias)

    def forward(self, x, y):
        bias = self.active("bias")
        return y + F.pad(bias, (0, self.out_features - len(bias)))


@pytest.fixture(autouse=True)
def registered():
    before = dict(PROMPT_MODULES)
    for cls in (Parallel, Columns, Tap, Shift):
        register_prompt_module(cls)
    yield
    PROMPT_MODULES.clear()
    PROMPT_MODULES.update(before)


SPACE = SearchSpace(
    4, {"lora": (1, 3), "vpt": (1, 2), **dict.fromkeys(("parallel", "columns", "tap", "shift"), (2, 5))}
)


def supernet(family="vit", **options):
    torch.manual_seed(0)
    options = {"search_space": SPACE, "init_weights": False, "dropout": 0.0, "drop_path": 0.0, **options}
    return get_peft_model(make_model(family), NoahConfig(**options), autocast_adapter_dtype=False).double().eval()


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_each_sits_at_its_site_and_counts(family):
    model = supernet(family)
    placed = {}
    for _, layer in model.noah_layers():
        for module in layer.prompt_modules("default"):
            placed.setdefault(module.name, []).append(module)
            assert module.count(module.max_dim) == sum(p.numel() for p in module.parameters())
    assert {name: len(modules) for name, modules in placed.items()} == {
        "lora": 8, "parallel": 8, "columns": 8, "vpt": 4, "tap": 4, "shift": 4
    }  # fmt: skip
    assert placed["tap"][0].in_features == (48 if family == "vit" else 24)  # fc2 or LayerScale
    assert model.count_parameters() == sum(p.numel() for n, p in model.named_parameters() if ".noah_" in n)


def test_a_subnet_is_cut_out_saved_and_loaded(pixels, tmp_path):
    model = supernet()
    for seed in range(3):
        architecture = SPACE.sample(random.Random(seed))
        model.set_architecture(architecture)
        expected = logits(model, pixels)
        subnet = model.extract()
        assert torch.equal(logits(subnet, pixels), expected)
        subnet.save_pretrained(tmp_path / str(seed))
        loaded = PeftModel.from_pretrained(make_model(), tmp_path / str(seed), autocast_adapter_dtype=False)
        assert loaded.get_architecture() == architecture
        torch.testing.assert_close(logits(loaded.double().eval(), pixels), expected)


def test_each_changes_the_output_and_gets_gradients(pixels):
    model = supernet()
    bare = logits(make_model().double(), pixels)
    for name in SPACE.dims:
        model.set_architecture({name: [SPACE.max_dim(name)] * 4})
        output = logits(model, pixels)
        assert (output - bare).abs().max() > 1e-4, name
        model.zero_grad()
        output.square().sum().backward()
        moved = {key.split(".noah_")[1].split(".")[0] for key, p in model.named_parameters()
                 if ".noah_" in key and p.grad is not None and p.grad.abs().sum() > 0}  # fmt: skip
        assert moved == {name}


@pytest.mark.parametrize("family", ["vit", "dinov2"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_fast_forward_and_fixed_shapes_keep_logits_and_gradients(family, recipe, pixels):
    assert_fast_and_fixed_shapes_keep_outputs(supernet(family, recipe=recipe).train(), SPACE, pixels)


def test_a_linear_one_is_merged_also_while_scoring(pixels):
    model = supernet()
    model.set_architecture({"columns": [5, 2, 0, 5], "lora": [3, 0, 1, 0]})
    expected = logits(model, pixels)
    with torch.inference_mode(), fast_forward(model):
        torch.testing.assert_close(logits(model, pixels), expected)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ".noah_columns." in name:
                    weight.mul_(2)
        changed = logits(model, pixels)
    torch.testing.assert_close(changed, logits(model, pixels))
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(logits(model.merge_and_unload(), pixels), changed)
    model = supernet()
    model.set_architecture({"parallel": [2] * 4})
    with pytest.raises(ValueError, match="active parallel modules"):
        model.merge_and_unload()


def test_it_is_searched_as_the_others_are(pixels):
    model = supernet()
    target = logits(model, pixels).detach()

    @torch.no_grad()
    def score(architecture):
        model.set_architecture(architecture)
        return float(-(logits(model, pixels) - target).square().mean())

    result = search(SPACE, score, model.count_parameters, budget=3_000)
    assert set(result.best.architecture) == set(SPACE.dims)


@pytest.mark.parametrize("name", [None, "vtab", "few_shot"])
def test_it_changes_nothing_for_who_did_not_name_it(name):
    model = get_peft_model(make_model(), NoahConfig(search_space=name))
    assert list(model.get_search_space().dims) == PAPER
    count = model.count_parameters()
    for plugin in PLUGINS:
        del PROMPT_MODULES[plugin]
    assert get_peft_model(make_model(), NoahConfig(search_space=name)).count_parameters() == count
    assert "plugins" not in model.peft_config["default"].to_dict()


def test_a_named_space_holds_it_where_it_is_named():
    space = SearchSpace.vtab(4, modules=("lora", "shift"))
    assert get_peft_model(make_model(), NoahConfig(search_space=space)).get_search_space() == space


def test_an_adapter_made_with_it_says_which_module_to_import(tmp_path):
    get_peft_model(make_model(), NoahConfig(architecture={"lora": [1] * 4, "shift": [2] * 4})).save_pretrained(
        tmp_path
    )
    assert json.loads((tmp_path / "adapter_config.json").read_text())["plugins"] == {"shift": __name__}
    del PROMPT_MODULES["shift"]
    said = f"made with one from the Python module '{__name__}': if you trust it, import {__name__} first"
    for load in (PeftModel.from_pretrained, load_adapter):
        with pytest.raises(ValueError, match=f"unknown prompt module 'shift' .*{re.escape(said)}"):
            load(make_model(), tmp_path)
    register_prompt_module(Shift)
    assert load_adapter(make_model(), tmp_path).get_architecture()["shift"] == (2,) * 4


def test_a_search_made_with_it_says_which_module_to_import(tmp_path):
    space = SearchSpace(4, {"lora": (1,), "elsewhere": (1,)})
    register_prompt_module(type("Elsewhere", (Shift,), {"name": "elsewhere", "__module__": "far.away"}))
    found = random_search(space, lambda architecture: 0.0, lambda architecture: 1, budget=10, evaluations=2)
    found.save(tmp_path / "search.json")
    assert json.loads((tmp_path / "search.json").read_text())["plugins"] == {"elsewhere": "far.away"}
    del PROMPT_MODULES["elsewhere"]
    loaded = SearchResult.load(tmp_path / "search.json")  # tables and figures need no plugin
    assert loaded.plugins == {"elsewhere": "far.away"}
    with pytest.raises(ValueError, match=r"unknown prompt module 'elsewhere' .*import far\.away first"):
        get_peft_model(make_model(), NoahConfig(architecture=loaded.best.architecture))


def test_a_race_made_with_it_says_so_too(tmp_path):
    race = Race([Design("default", {"lora": 8}), Design("shifted", {"shift": 2})], RaceSettings())
    assert race.to_dict()["plugins"] == {"shift": __name__}
    again = Race.from_dict(json.loads(json.dumps(race.to_dict())))
    assert again.to_dict() == race.to_dict()
    assert "plugins" not in Race([Design("default", {"lora": 8})], RaceSettings()).to_dict()


def test_one_that_no_file_names_and_one_of_a_notebook_get_an_advice_too():
    with pytest.raises(ValueError, match="Import the Python module that registers it first"):
        get_peft_model(make_model(), NoahConfig(architecture={"nobodys": [1] * 4}))
    with pytest.raises(ValueError, match="'cell' was defined in a script or notebook: run its definition"):
        get_peft_model(make_model(), NoahConfig(architecture={"cell": [1] * 4}, plugins={"cell": "__main__"}))


@pytest.mark.parametrize("plugins", [3, ["shift"], {"shift": 3}, {"shift": "os; rm"}, {"a b": "os"}, {"x": "y" * 300}])
def test_a_file_names_plugins_by_plain_words(plugins):
    with pytest.raises(ValueError, match="plugins"):
        NoahConfig(plugins=plugins)


def test_one_registered_after_a_layer_was_built_joins_it(pixels):
    for name in ("parallel", "columns", "tap", "shift"):
        del PROMPT_MODULES[name]
    model = get_peft_model(make_model(), NoahConfig(architecture={"lora": [2] * 4}))
    register_prompt_module(Parallel)
    model.add_adapter("later", NoahConfig(architecture={"parallel": [3] * 4}))
    before = logits(model.double().eval(), pixels)
    model.set_adapter("later")
    assert model.get_architecture()["parallel"] == (3,) * 4
    assert not torch.allclose(logits(model, pixels), before)
    assert isinstance(copy.deepcopy(model).base_model.model.vit.layers[0].attention.q_proj, NoahLayer)


def test_a_layer_has_no_container_for_what_it_does_not_carry():
    config = NoahConfig(architecture={"lora": [2] * 4, "shift": [2, 0, 0, 0]}, drop_path=0.1)
    model = get_peft_model(make_model(), config)
    rows = {key: layer.adapter_layer_names for key, layer in model.noah_layers()}
    assert rows["vit.layers.0.attention.q_proj"] == ("noah_lora",)
    assert rows["vit.layers.0.layernorm_before"] == ("noah_shift",)
    assert rows["vit.layers.3.mlp.fc2"] == ()  # stochastic depth alone
    model.add_adapter("more", NoahConfig(architecture={"parallel": [2] * 4, "lora": [1] * 4}))
    query = model.base_model.model.vit.layers[0].attention.q_proj
    assert query.adapter_layer_names == ("noah_lora", "noah_parallel")
    model.delete_adapter("more")
    assert query.adapter_layer_names == ("noah_lora",) and not hasattr(query, "noah_parallel")


def test_modules_act_in_one_order_whatever_came_first():
    model = get_peft_model(make_model(), NoahConfig(architecture={"parallel": [2] * 4}))
    model.add_adapter("more", NoahConfig(architecture={"parallel": [2] * 4, "lora": [1] * 4}))
    query = model.base_model.model.vit.layers[0].attention.q_proj
    assert [module.row for module in query.prompt_modules("more")] == ["lora", "parallel"]


def test_targets_are_shared_with_lora():
    config = NoahConfig(architecture={"parallel": [3, 0, 3, 3]}, target_modules=["fc1"], layers_to_transform=[0, 1, 2])
    model = get_peft_model(make_model(), config)
    assert [key for key, _ in model.noah_layers()] == ["vit.layers.0.mlp.fc1", "vit.layers.2.mlp.fc1"]
    with pytest.raises(ValueError, match="so parallel cannot be placed"):
        get_peft_model(make_model(), NoahConfig(architecture={"parallel": [3] * 4}, target_modules=["nowhere"]))


def test_what_cannot_be_registered_is_refused():
    with pytest.raises(ValueError, match="is not a subclass of PromptModule"):
        register_prompt_module(nn.Linear)
    with pytest.raises(ValueError, match="Nameless.name is None; give the word"):
        register_prompt_module(type("Nameless", (Parallel,), {"name": None}))
    with pytest.raises(ValueError, match="Elsewhere.site is 'head'; give one of 'projection', 'mlp_output', 'norm'"):
        register_prompt_module(type("Elsewhere", (Parallel,), {"name": "elsewhere", "site": "head"}))
    with pytest.raises(
        ValueError, match="prompt module 'lora' is registered already: peft_noah.tuner.prompts.lora.Lora"
    ):
        register_prompt_module(type("Other", (Parallel,), {"name": "lora"}))
    again = type("Parallel", (Parallel,), {"__module__": __name__})  # a notebook's cell, run twice
    assert register_prompt_module(again) is PROMPT_MODULES["parallel"] is again
    assert [*PROMPT_MODULES][:3] == PAPER
