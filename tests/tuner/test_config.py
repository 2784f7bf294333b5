"""`NoahConfig`: round trips, what settings mean, and which contradict each other."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import make_model
from peft import LoraConfig, PeftConfig, TaskType, get_peft_model
from torch import nn

from peft_noah import Architecture, NoahConfig, SearchSpace

CONFIGS = {
    "default": {},
    "released": {"recipe": "released", "modules_to_save": []},
    "architecture": {"architecture": Architecture.uniform(4, lora=3, vpt=2), "task_type": "SEQ_CLS"},
    "space": {"search_space": SearchSpace.few_shot(4)},
    "targets": {"target_modules": ["value", "query"], "exclude_modules": ["layers.0.attention.q_proj"]},
    "layers": {"target_modules": ["query"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return NoahConfig(**CONFIGS[request.param])


def carriers(model):
    return sorted(
        name.removesuffix(".noah_lora.default")
        for name, m in model.named_modules()
        if name.endswith("noah_lora.default")
    )


def adapted(**options):
    options.setdefault("architecture", Architecture.uniform(4, lora=2))
    return [name.split("layers.")[-1] for name in carriers(get_peft_model(make_model(), NoahConfig(**options)))]


def test_a_saved_config_comes_back_equal(config, tmp_path):
    config.save_pretrained(tmp_path)
    for loaded in (NoahConfig.from_pretrained(tmp_path), PeftConfig.from_pretrained(tmp_path)):
        assert type(loaded) is NoahConfig
        assert loaded == config and loaded.to_dict() == config.to_dict() and hash(loaded) == hash(config)
    assert NoahConfig.from_json_file(tmp_path / "adapter_config.json") == config.to_dict()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copied_config_is_equal_and_has_the_same_hash(config, duplicate):
    assert duplicate(config) == config and hash(duplicate(config)) == hash(config)
    assert {config: 1}[duplicate(config)] == 1


def test_the_dict_of_a_config_makes_the_config_again(config):
    assert NoahConfig(**config.to_dict()) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_a_resolved_config_comes_back_equal(tmp_path):
    for options in ({}, {"architecture": Architecture.uniform(4, lora=2)}, {"target_modules": "all-linear"}):
        model = get_peft_model(make_model(), NoahConfig(**options))
        model.peft_config["default"].save_pretrained(tmp_path)
        assert NoahConfig.from_pretrained(tmp_path) == model.peft_config["default"]


def test_different_configs_differ_in_their_hash():
    assert len({hash(NoahConfig(**options)) for options in CONFIGS.values()}) == len(CONFIGS)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_targets_may_be_any_collection(kind):
    names = ("query", "value")
    given = NoahConfig(target_modules=kind(names), exclude_modules=kind(["k_proj"]))
    assert given == NoahConfig(target_modules=list(names), exclude_modules=["k_proj"])
    assert NoahConfig(target_modules=["a"], layers_to_transform=kind([2, 0])).layers_to_transform in ([0, 2], [2, 0])


def test_a_config_file_has_the_same_bytes_whatever_the_hash_seed(tmp_path):
    code = (
        "import sys; from peft_noah import NoahConfig\n"
        "names = [f'layer{i}' for i in range(20)]\n"
        "NoahConfig(target_modules=names, exclude_modules=names).save_pretrained(sys.argv[1])"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "other"], env={**os.environ, "PYTHONHASHSEED": other}, check=True
    )
    names = [f"layer{i}" for i in range(20)]
    NoahConfig(target_modules=names, exclude_modules=names).save_pretrained(tmp_path / "here")
    files = [(tmp_path / where / "adapter_config.json").read_bytes() for where in ("here", "other")]
    assert files[0] == files[1] and b"layer19" in files[0]


def test_keys_of_a_newer_version_warn_and_are_ignored(config, tmp_path):
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "not_yet_known": 1, "another": {}}))
    with pytest.warns(UserWarning, match=r"\['another', 'not_yet_known'\] for class NoahConfig, these are ignored"):
        assert PeftConfig.from_pretrained(tmp_path) == config


def test_a_file_with_a_runtime_config_gives_what_the_config_says(config, tmp_path):
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "runtime_config": {"ephemeral_gpu_offload": True}}))
    assert NoahConfig.from_json_file(file) == config.to_dict()
    assert NoahConfig.from_pretrained(tmp_path) == config


def test_a_file_without_peft_type_gets_pefts_own_error(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"foo": "bar", "baz": 123}')
    message = "The NoahConfig config that is trying to be loaded is missing required keys: {'peft_type'}."
    with pytest.raises(TypeError, match=message):
        NoahConfig.from_pretrained(tmp_path)


def test_the_file_of_another_method_gives_its_config(tmp_path):
    LoraConfig(r=3).save_pretrained(tmp_path)
    loaded = NoahConfig.from_pretrained(tmp_path)
    assert type(loaded) is LoraConfig and loaded.r == 3


@pytest.mark.parametrize("peft_type", ["NOTHING", ["NOAH"], 1, None])
def test_a_file_of_an_unknown_method_is_refused(peft_type, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type}))
    with pytest.raises(ValueError, match="which is not known .known: .*NOAH"):
        NoahConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("task_type", [*TaskType, None])
def test_every_task_type_is_accepted(task_type):
    assert NoahConfig(task_type=task_type).task_type == task_type


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_type": "nonsense"}, "Invalid task type: 'nonsense'"),
        ({"recipe": "other"}, "recipe must be one of 'paper', 'released', got 'other'"),
        ({"init": "zeros"}, "init must be one of"),
        ({"dropout": 1.0}, "dropout is 1.0; give a finite number of at least 0 and below 1"),
        ({"drop_path": "0.1"}, "drop_path is '0.1'; give a finite number"),
        ({"lora_scale": float("nan")}, "lora_scale is nan; give a finite number"),
        ({"adapter_activation": "nonsense"}, "adapter_activation 'nonsense' is not in transformers' ACT2FN"),
        ({"adapter_activation": ["relu"]}, "is not in transformers' ACT2FN"),
        ({"search_space": "imagenet"}, "search_space 'imagenet' is not known .known: vtab, few_shot, wide."),
        ({"search_space": ["vtab"]}, "is not known"),
        ({"architecture": {"lora": [1, 2], "vpt": [1]}}, "row 'vpt' has 1 dims but row 'lora' has 2"),
        ({"architecture": {"lora": [1 << 20]}}, "0 to 65,536"),
        ({"architecture": {"lora": [1] * 5000}}, "5,000 entries"),
        ({"architecture": [1, 2]}, "an architecture is a mapping"),
        ({"search_space": {"num_blocks": 1 << 20, "dims": {"lora": [1]}, "depths": {}}}, "num_blocks"),
        ({"target_modules": ".*q", "layers_to_transform": [0]}, "`layers_to_transform` cannot be used when"),
        ({"target_modules": ".*q", "layers_pattern": "h"}, "`layers_pattern` cannot be used when"),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "`layers_to_transform` must also be specified"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused_on_construction(options, message):
    with pytest.raises(ValueError, match=message):
        NoahConfig(**options)


@pytest.mark.parametrize("space", ["vtab", SearchSpace.vtab(4)])
@pytest.mark.parametrize(
    "dims", [{"lora": 10}, {"lora": 5, "adapter": 5, "vpt": 5}, {"lora": 7, "adapter": 7, "vpt": 7}]
)
def test_an_architecture_that_a_search_space_could_not_sample_from_is_refused(space, dims):
    architecture = Architecture.uniform(4, **dims)
    if space == "vtab" and dims == {"lora": 10}:
        assert NoahConfig(search_space=space, architecture=architecture).search_space["dims"] == {"lora": [1, 5, 10]}
        return
    with pytest.raises(ValueError, match="is not the largest of search_space"):
        NoahConfig(search_space=space, architecture=architecture)


def test_an_architecture_that_is_the_largest_of_its_search_space_is_accepted():
    space = SearchSpace.vtab(4)
    config = NoahConfig(search_space=space, architecture=space.largest())
    assert get_peft_model(make_model(), config).get_search_space() == space


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["k_proj", "layers.1.mlp.fc1"], r".*layers\.[02]\..*(q_proj|o_proj)", "all-linear"]
)
def test_target_modules_match_what_they_match_in_peft_lora(targets):
    options = {"target_modules": targets, "modules_to_save": ["classifier"]}
    lora = get_peft_model(make_model(), LoraConfig(**options))
    expected = {name.removeprefix("model.") for name in lora.base_model.targeted_module_names}
    noah = get_peft_model(make_model(), NoahConfig(architecture=Architecture.uniform(4, lora=2), **options))
    assert {name.removeprefix("base_model.model.") for name in carriers(noah)} == expected


@pytest.mark.parametrize(
    "options",
    [
        {"layers_to_transform": [1, 3]},
        {"layers_to_transform": 2, "layers_pattern": "layers"},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"layers_to_transform": 0},
        {"layers_to_transform": [], "layers_pattern": "layers"},
        {"layers_to_transform": [0], "layers_pattern": ["nothing", "layers"]},
        {"layers_to_transform": []},
        {"exclude_modules": ["layers.0.attention.q_proj", "k_proj"]},
        {"exclude_modules": r".*layers\.[12]\..*"},
    ],
)
def test_layers_and_exclusions_mean_what_they_mean_in_peft_lora(options):
    lora = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj", "k_proj"], **options))
    expected = sorted(name.split("layers.")[-1] for name in lora.base_model.targeted_module_names)
    assert adapted(target_modules=["query", "key"], **options) == expected


def test_layers_to_transform_goes_with_the_default_targets():
    assert adapted(layers_to_transform=[2]) == ["2.attention.k_proj", "2.attention.q_proj"]


def test_exclusions_hold_for_adapter_and_vpt_too():
    architecture = Architecture.uniform(4, lora=2, adapter=2, vpt=2)
    options = {"architecture": architecture, "exclude_modules": [r"layers.1.mlp.fc2", "layers.3.layernorm_before"]}
    model = get_peft_model(make_model(), NoahConfig(**options))
    assert model.get_architecture()["adapter"] == (2, 0, 2, 2)
    assert model.get_architecture()["vpt"] == (2, 2, 2, 0)


@pytest.mark.parametrize("excluded", [1, 3])
def test_tokens_that_run_on_stop_before_an_excluded_block(excluded, pixels):
    options = {"architecture": {"vpt": [2, 0, 0, 0]}, "exclude_modules": [f"layers.{excluded}.layernorm_before"]}
    model = get_peft_model(make_model(), NoahConfig(recipe="released", **options)).eval()
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert states[-1].shape[1] == 5


@pytest.mark.parametrize("rows", [{"lora": 2}, {"lora": 2, "vpt": 2}])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_lora_without_a_place_is_refused(rows, recipe):
    config = NoahConfig(recipe=recipe, architecture=Architecture.uniform(4, **rows), target_modules=["nowhere"])
    with pytest.raises(ValueError, match="Target modules {'nowhere'} not found in the base model"):
        get_peft_model(make_model(), config)


def test_lora_on_a_layer_that_is_no_linear_is_refused():
    with pytest.raises(ValueError, match="target module '1' is a ReLU, but lora can only be placed on a Linear"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), NoahConfig(target_modules=["1"]))


@pytest.mark.parametrize("row", ["adapter", "vpt"])
def test_adapter_and_vpt_are_refused_where_no_blocks_are_known(row):
    mlp = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=f"'{row}' cannot be placed: nothing is known about the blocks of"):
        get_peft_model(mlp, NoahConfig(target_modules=["0"], architecture={"lora": [2], row: [2]}))
    assert type(mlp[0]) is nn.Linear


@pytest.mark.parametrize("targets", [["0", "2"], r"\d", "all-linear"])
def test_every_kind_of_target_works_on_a_plain_module(targets):
    mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    config = NoahConfig(target_modules=targets, architecture={"lora": [3]})
    if targets == r"\d":
        with pytest.raises(ValueError, match="is a ReLU"):
            get_peft_model(mlp, config)
        config.target_modules = r"[02]"
    assert carriers(get_peft_model(mlp, config)) == ["base_model.model.0", "base_model.model.2"]


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("row", ["lora", "adapter", "vpt"])
def test_init_weights_false_is_far_from_the_identity(row, recipe, pixels):
    base = make_model()
    config = NoahConfig(recipe=recipe, architecture=Architecture.uniform(4, **{row: 4}), init_weights=False)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        assert (model(pixel_values=pixels).logits - base(pixel_values=pixels).logits).abs().max() > 1e-4
