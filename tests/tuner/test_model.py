"""The tuner on tiny models: elastic slices, counting, extraction, saving, switching off, unloading."""

import copy
import random

import pytest
import torch
from conftest import FAMILIES, make_model
from peft import PeftModel, get_peft_model
from reference import reference_logits
from torch import nn

from peft_noah import Architecture, NoahConfig, SearchSpace

RECIPES = ("paper", "released")


def supernet(family="vit", seed=0, **options):
    base = make_model(family, seed)
    options.setdefault("init_weights", False)
    return base, get_peft_model(copy.deepcopy(base), NoahConfig(**options)).eval()


def samples(model, number=5):
    space = model.get_search_space()
    return [space.sample(random.Random(seed)) for seed in range(number)]


def prompt_parameters(model):
    return {name: p for name, p in model.named_parameters() if ".noah_" in name}


@torch.no_grad()
def logits(model, pixels, **kwargs):
    return model(pixel_values=pixels, **kwargs).logits


def test_the_default_config_is_the_vtab_supernet(vit):
    model = get_peft_model(vit, NoahConfig())
    assert model.get_search_space() == SearchSpace.vtab(4)
    assert model.get_architecture() == Architecture.uniform(4, lora=10, adapter=10, vpt=10)


def test_a_new_paper_supernet_adds_nothing_but_its_tokens(vit, pixels):
    model = get_peft_model(copy.deepcopy(vit), NoahConfig()).eval()
    model.set_architecture(Architecture.uniform(4, lora=10, adapter=10))
    assert torch.equal(logits(model, pixels), logits(vit, pixels))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_subnet_computes_the_papers_equations(family, recipe, pixels):
    base, model = supernet(family, recipe=recipe)
    for architecture in samples(model):
        model.set_architecture(architecture)
        # double precision would need a second model; float32 differs by the order of sums only
        torch.testing.assert_close(logits(model, pixels), reference_logits(base, model, architecture, pixels))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_extracted_subnet_equals_the_active_one_bit_for_bit(family, recipe, pixels, tmp_path):
    base, model = supernet(family, recipe=recipe)
    for index, architecture in enumerate(samples(model)):
        model.set_architecture(architecture)
        expected = logits(model, pixels)
        subnet = model.extract(architecture)
        assert torch.equal(logits(subnet, pixels), expected)
        subnet.save_pretrained(tmp_path / str(index))
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / str(index))
        assert torch.equal(logits(loaded, pixels), expected)
        assert torch.equal(logits(model, pixels), expected)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_is_the_number_of_stored_weights(family, recipe):
    _, model = supernet(family, recipe=recipe)
    for architecture in samples(model):
        built = get_peft_model(make_model(family), NoahConfig(recipe=recipe, architecture=architecture))
        stored = sum(p.numel() for p in prompt_parameters(built).values())
        assert model.count_parameters(architecture) == stored == built.count_parameters()


@pytest.mark.parametrize(
    ("architecture", "recipe", "expected"),
    [
        ({"lora": 8}, "paper", 294_912),
        ({"adapter": 8}, "paper", 156_768),
        ({"lora": 8}, "released", 294_912),
        ({"vpt": 10}, "paper", 92_160),
    ],
)
def test_counts_at_vit_b16_are_the_papers(architecture, recipe, expected):
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=10))
    config = NoahConfig(recipe=recipe, architecture=Architecture.uniform(12, **architecture))
    assert get_peft_model(model, config, low_cpu_mem_usage=True).count_parameters() == expected


def test_only_prompt_modules_and_classifier_train(vit):
    model = get_peft_model(vit, NoahConfig())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {name for name in trainable if "classifier.modules_to_save.default" in name}
    assert len(head) == 2
    assert trainable - head == set(prompt_parameters(model))


def test_the_classifier_is_saved_with_the_adapter(vit, pixels, tmp_path):
    base = copy.deepcopy(vit)
    model = get_peft_model(vit, NoahConfig(init_weights=False)).eval()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save.default.weight.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path), pixels), logits(model, pixels))


@pytest.mark.parametrize("recipe", RECIPES)
def test_disabling_gives_the_base_outputs_bit_for_bit(recipe, pixels):
    base, model = supernet(recipe=recipe)
    assert not torch.equal(logits(model, pixels), logits(base, pixels))
    with model.disable_adapter():
        assert torch.equal(logits(model, pixels), logits(base, pixels))


@pytest.mark.parametrize("recipe", RECIPES)
def test_unloading_leaves_no_trace(recipe, pixels):
    base, model = supernet(recipe=recipe)
    plain = model.unload()
    assert torch.equal(logits(plain, pixels), logits(base, pixels))
    assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in base.named_modules()}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in plain.modules())


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_never_changes_the_backbone(recipe, pixels):
    base, model = supernet(recipe=recipe)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.detach().clone() for name, p in prompt_parameters(model).items()}
    for architecture in samples(model, 3):
        model.set_architecture(architecture)
        model(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(p, before[name]) for name, p in prompt_parameters(model).items())
    trained = model.unload().state_dict()
    # the classifier is the trained one after unload, as with all of PEFT's methods
    backbone = {name: value for name, value in base.state_dict().items() if not name.startswith("classifier")}
    assert len(backbone) > 50 and all(torch.equal(value, trained[name]) for name, value in backbone.items())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_trainable_weight_gets_a_gradient_whatever_is_sampled(recipe, pixels):
    _, model = supernet(recipe=recipe)
    model.train()
    model.set_architecture(model.get_search_space().smallest())
    model(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("recorded_before", [False, True])
def test_hidden_states_keep_their_usual_length_but_for_what_block_0_reads(recorded_before, pixels):
    base = make_model()
    if recorded_before:  # transformers installs its recording hooks at the first such call
        base(pixel_values=pixels, output_hidden_states=True)
    model = get_peft_model(base, NoahConfig())
    lengths = [h.shape[1] for h in model(pixel_values=pixels, output_hidden_states=True).hidden_states]
    assert lengths == [5 + 10, 5, 5, 5, 5]


def test_a_copied_model_uses_its_own_weights(pixels):
    _, model = supernet()
    expected = logits(model, pixels)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in prompt_parameters(model).values():
            p.zero_()
    assert torch.equal(logits(twin, pixels), expected)


def test_shared_down_matrix_exists_once_per_block():
    _, model = supernet(recipe="released")
    downs = [name for name in prompt_parameters(model) if "noah_lora" in name and name.endswith("down")]
    assert len(downs) == 4 and all("q_proj" in name for name in downs)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"lora": [1, 1, 1]}, "row 'lora' has 3 dims but this model has 4 blocks"),
        ({"lora": [11, 1, 1, 1]}, "lora in block 0 cannot take dim 11: adapter 'default' stores dims 0 to 10"),
        ({"suffix": [1, 1, 1, 1]}, "unknown prompt module 'suffix'"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused_and_changes_nothing(rows, message):
    _, model = supernet()
    before = model.get_architecture()
    with pytest.raises(ValueError, match=message):
        model.set_architecture(rows)
    assert model.get_architecture() == before


def test_a_config_for_another_number_of_blocks_is_refused_before_the_model_is_touched(vit):
    before = {name: type(module) for name, module in vit.named_modules()}
    with pytest.raises(ValueError, match="row 'lora' has 3 dims but this model has 4 blocks"):
        get_peft_model(vit, NoahConfig(architecture={"lora": [1, 1, 1]}))
    assert {name: type(module) for name, module in vit.named_modules()} == before


def test_an_unknown_family_is_named_with_the_known_ones():
    from transformers import ResNetConfig, ResNetForImageClassification

    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="no sites known for model_type 'resnet' .known: .*dinov2.*vit"):
        get_peft_model(resnet, NoahConfig())


def test_adapter_and_vpt_on_a_model_without_known_blocks_are_refused():
    mlp = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="'adapter' cannot be placed"):
        get_peft_model(mlp, NoahConfig(target_modules=["0"], architecture={"lora": [2], "adapter": [2]}))


def test_lora_works_on_a_plain_module():
    mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    expected = mlp(x)
    model = get_peft_model(mlp, NoahConfig(target_modules=["0", "2"], init_weights=False))
    assert model.count_parameters() == 10 * (4 + 6) + 10 * (6 + 2)
    assert not torch.equal(model(x), expected)
    torch.testing.assert_close(model.merge_and_unload()(x), model(x))


def test_lora_only_merges_and_others_say_why_not(pixels):
    _, model = supernet()
    with pytest.raises(ValueError, match="active adapter and vpt modules"):
        model.merge_and_unload()
    model.set_architecture(Architecture.uniform(4, lora=5))
    expected = logits(model, pixels)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, pixels), expected)  # sums in another order


def test_a_published_architecture_goes_straight_into_a_config():
    from transformers import ViTConfig, ViTForImageClassification

    vit = ViTForImageClassification(
        ViTConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8)
    )
    model = get_peft_model(vit, NoahConfig(architecture=Architecture.published("vtab/cifar100")))
    assert model.get_architecture() == Architecture.published("vtab/cifar100")
