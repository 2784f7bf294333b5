"""An adapter of a stranger: nothing is unpickled, nothing large is allocated, every fault is a clear ValueError."""

import json
import pickle

import pytest
import torch
from conftest import make_model
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_noah import Architecture, NoahConfig, SearchSpace
from peft_noah.tuner.adapter_files import load_adapter, read_config

ROADS = {"peft_noah": load_adapter, "peft": PeftModel.from_pretrained}


class Bomb:
    exploded = False

    def __reduce__(self):
        return setattr, (Bomb, "exploded", True)


@pytest.fixture
def folder(tmp_path, vit):
    get_peft_model(vit, NoahConfig(architecture=Architecture.uniform(4, lora=2, adapter=1))).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def test_a_good_adapter_loads_with_its_weights(folder):
    edit_weights(folder, lambda weights: [weight.fill_(3.0) for weight in weights.values()])
    loaded = load_adapter(make_model(), folder)
    assert {float(p.unique()) for name, p in loaded.named_parameters() if "noah_" in name} == {3.0}


@pytest.mark.parametrize("road", ROADS)
def test_weights_in_a_pickle_alone_are_refused_unopened(folder, road):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    message = "adapter_model.safetensors is missing|adapter_model.bin alone, a pickle"
    with pytest.raises(ValueError, match=message):
        ROADS[road](make_model(), folder)
    assert not Bomb.exploded


def test_a_pickle_beside_the_weights_is_not_opened(folder):
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    load_adapter(make_model(), folder)
    assert not Bomb.exploded


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"lora": [10**9] * 4}, "give a whole number from 0 to 65,536"),
        ({"lora": [65_536] * 4, "adapter": [65_536] * 4}, "stores about [0-9,]+ prompt parameters, more than the"),
        ({"vpt": [4_097, 0, 0, 0]}, "4,097 VPT tokens"),
        ({"lora": [1] * 4_096}, "4096 dims but this model has 4 blocks"),
        ({f"row{i}": [1] * 4 for i in range(64)}, "unknown prompt module 'row0'"),
    ],
)
def test_dims_beyond_all_sense_are_refused_before_they_are_allocated(folder, road, rows, message):
    edit(folder, architecture=rows)
    model = make_model()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        ROADS[road](model, folder)
    assert [type(module) for module in model.modules()] == before


def test_a_search_space_beyond_all_sense_is_refused_too(vit):
    space = SearchSpace(4, dict.fromkeys(("lora", "adapter"), (1, 65_536)))
    with pytest.raises(ValueError, match="more than the 16,777,216 allowed"):
        get_peft_model(vit, NoahConfig(search_space=space))


def test_the_largest_published_space_fits_a_small_model(vit):
    get_peft_model(vit, NoahConfig(search_space="few_shot"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "does not describe a NOAH adapter"),
        ({"self": 1}, "has the key 'self'"),
        ({"target_modules": [1]}, "target_modules is .1.; give a text"),
        ({"target_modules": "x" * 10_001}, "give a text of at most 10,000 letters"),
        ({"exclude_modules": {"a": 1}}, "exclude_modules is {'a': 1}; give a text"),
        ({"modules_to_save": ["a"] * 10_001}, "modules_to_save is"),
        ({"layers_to_transform": [10**9]}, "one of layers_to_transform is 1000000000"),
        ({"layers_to_transform": "1"}, "layers_to_transform is '1'"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5; give a str"),
        ({"auto_mapping": "os.system"}, "auto_mapping is 'os.system'; give a Mapping"),
        ({"backbone": [1]}, "backbone is .1.; give a Mapping"),
        ({"inference_mode": "yes"}, "inference_mode is 'yes'; give a bool"),
        ({"lora_scale": 10**400}, "lora_scale is 1000"),
        ({"dropout": []}, "dropout is \\[\\]; give a finite number"),
        ({"recipe": ["paper"]}, "recipe must be one of"),
        ({"search_space": "x" * 50_000, "architecture": None}, "is not known .known: vtab, few_shot, wide."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_with_a_value_that_cannot_be_is_refused_by_name(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(folder)
    assert "adapter_config.json" in str(caught.value) and len(str(caught.value)) < 1_000


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"peft_type": "NOAH", "peft_type": "LORA"}'])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "adapter_config.json").write_text(text)
    for read in (read_config, NoahConfig.from_pretrained):
        with pytest.raises(ValueError, match="adapter_config.json"):
            read(folder)


def test_other_ways_to_read_a_config_still_work(folder):
    assert PeftConfig.from_pretrained(folder) == NoahConfig.from_pretrained(folder) == read_config(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(next(key for key in weights if "noah_lora" in key)), "lacks '.*noah_lora"),
        (lambda weights: weights.pop(next(key for key in weights if "classifier" in key)), "lacks '.*classifier"),
        (lambda weights: weights.update({"base_model.model.x.noah_vpt.tokens": torch.zeros(1)}), "against its config"),
        (lambda weights: weights.update({k: v.long() for k, v in weights.items()}), "as I64; weights are floating"),
        (lambda weights: weights.update({k: v[:1] for k, v in weights.items()}), "belongs to another model"),
    ],
)
def test_weights_that_are_not_the_configs_are_refused(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        load_adapter(make_model(), folder)
