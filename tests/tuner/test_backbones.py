"""Where blocks, embeddings and classifiers are found: in the family's model, whatever else bears such names."""

import copy

import pytest
import torch
from conftest import SIZES, make_model
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.vit.modeling_vit import ViTPreTrainedModel

from peft_noah import Architecture, Backbone, NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.tuner.backbones import BACKBONES, find_backbone

MIX = Architecture.uniform(4, lora=3, adapter=2, vpt=2)
HEADS = ["cls_classifier", "distillation_classifier"]


def vit_config():
    return ViTConfig(**SIZES, num_labels=5)


class Deep(nn.Module):
    """A classifier whose own layers are named as blocks are."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 5)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Own(ViTPreTrainedModel):
    """A user's class with a list named as the blocks are."""

    def __init__(self, config):
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.layers = nn.ModuleList([nn.Linear(24, 5)])
        self.embeddings = nn.Identity()
        self.post_init()


class Around(nn.Module):
    """A user's module around a ViT: it has no config."""

    def __init__(self, inner):
        super().__init__()
        self.vit, self.head = inner, nn.Linear(24, 7)

    def forward(self, pixels):
        return self.head(self.vit(pixel_values=pixels).last_hidden_state[:, 0])


@pytest.fixture
def around():
    torch.manual_seed(0)
    return Around(ViTModel(vit_config(), add_pooling_layer=False)).eval()


# ---------------------------------------------------------------------- blocks by their place


@pytest.mark.parametrize("change", ["classifier", "own class"])
def test_lists_with_the_names_of_blocks_are_no_blocks_elsewhere(change):
    model = make_model() if change == "classifier" else Own(vit_config())
    if change == "classifier":
        model.classifier = Deep()
    layout = find_backbone("vit")
    assert layout.block_names(model) == [f"vit.layers.{i}" for i in range(4)]
    assert get_peft_model(model, NoahConfig(architecture=MIX)).get_architecture() == MIX


def test_a_deep_classifier_is_trained_and_saved_whole(pixels, tmp_path):
    def build():
        model = make_model()
        torch.manual_seed(3)
        model.classifier = Deep()
        return model.eval()

    model = get_peft_model(build(), NoahConfig(architecture=MIX, init_weights=False)).eval()
    assert model.peft_config["default"].modules_to_save == ["classifier"]
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].layers[1].bias += 1
        expected = model(pixel_values=pixels).logits
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(build(), tmp_path)(pixel_values=pixels).logits, expected)


@pytest.mark.parametrize("make", [lambda: ViTModel(vit_config()), make_model, lambda: make_model("dinov2")])
def test_a_base_model_and_a_classifier_have_the_same_blocks(make):
    model = make()
    names = BACKBONES[model.config.model_type].block_names(model)
    assert len(names) == 4 and names[0].endswith("layers.0" if model.config.model_type == "vit" else "layer.0")


def test_a_star_stands_for_any_number():
    stages = nn.Module()
    stages.stages = nn.ModuleList(
        nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])}) for _ in range(2)
    )
    names = Backbone(blocks="stages.*.blocks", mlp_output="fc2", norm="norm").block_names(stages)
    assert names[0] == "stages.0.blocks.0" and len(names) == 4


def test_a_model_with_two_vits_is_told_to_wrap_one():
    class Twins(ViTPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.left, self.right = ViTModel(config), ViTModel(config)
            self.post_init()

    with pytest.raises(ValueError, match=r"several models with blocks: left, right. .*model.left = get_peft_model"):
        get_peft_model(Twins(vit_config()), NoahConfig())


# ---------------------------------------------------------------------- a module around a model


@pytest.mark.parametrize(
    "options", [{}, {"target_modules": ["q_proj"], "architecture": {"lora": [2], "adapter": [2]}}]
)
def test_a_module_around_a_vit_is_told_to_wrap_the_inner_model(around, options):
    message = (
        r"This Around holds a model of a known family as 'vit'. Wrap the inner model: `model.vit = get_peft_model\("
    )
    with pytest.raises(ValueError, match=message):
        get_peft_model(around, NoahConfig(**options))


def test_a_module_that_borrows_the_config_of_its_vit_is_told_the_same(around):
    around.config = around.vit.config
    with pytest.raises(ValueError, match="This Around holds a model of a known family as 'vit'. Wrap the inner model"):
        get_peft_model(around, NoahConfig())


def test_the_inner_model_can_be_wrapped(around, pixels, tmp_path):
    plain = copy.deepcopy(around)
    around.vit = get_peft_model(around.vit, NoahConfig(architecture=MIX, init_weights=False))
    around.vit.set_architecture(Architecture.uniform(4, lora=2, vpt=1))
    around.train()(pixels).sum().backward()
    trained = {name for name, weight in around.named_parameters() if weight.grad is not None}
    assert any(".noah_vpt." in name for name in trained) and "head.weight" in trained
    assert all(".noah_" in name or name.startswith("head.") for name in trained)
    with torch.no_grad():
        expected = around.eval()(pixels)
        around.vit.save_pretrained(tmp_path)
        plain.vit = PeftModel.from_pretrained(plain.vit, tmp_path)
        plain.vit.set_architecture(Architecture.uniform(4, lora=2, vpt=1))
        assert torch.equal(plain(pixels), expected)
        with fast_forward(plain) as fast:
            torch.testing.assert_close(plain(pixels), expected)
        assert fast.reason is None


# ---------------------------------------------------------------------- DeiT with its distilled head


def make_deit(cls=DeiTForImageClassificationWithTeacher):
    torch.manual_seed(0)
    return cls(DeiTConfig(**SIZES, num_labels=5)).eval()


@pytest.mark.parametrize(
    ("cls", "heads"), [(DeiTForImageClassificationWithTeacher, HEADS), (DeiTForImageClassification, ["classifier"])]
)
def test_the_classifiers_of_a_deit_train_and_are_saved(cls, heads, pixels, tmp_path):
    model = get_peft_model(make_deit(cls), NoahConfig(architecture=MIX, init_weights=False))
    assert model.peft_config["default"].modules_to_save == heads
    model(pixel_values=pixels).logits.square().sum().backward()
    for head in heads:
        weight = model.base_model.model.get_submodule(head).modules_to_save["default"].weight
        assert weight.grad.abs().max() > 0
        weight.data -= weight.grad
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels).logits
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(make_deit(cls), tmp_path)(pixel_values=pixels).logits, expected)


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_deit_with_two_heads_runs_fast_with_equal_logits(recipe, pixels):
    model = get_peft_model(make_deit(), NoahConfig(recipe=recipe, architecture=MIX, init_weights=False)).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels)
        with fast_forward(model) as fast:
            actual = model(pixel_values=pixels)
    assert fast.reason is None
    for name in ("logits", "cls_logits", "distillation_logits"):
        torch.testing.assert_close(actual[name], expected[name])


def test_a_checkpoint_with_two_heads_keeps_them_as_an_auto_model(tmp_path):
    make_deit().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is DeiTForImageClassificationWithTeacher
    assert BACKBONES["deit"].head_names(loaded) == HEADS


def test_a_model_without_a_classifier_has_nothing_to_save():
    model = ViTForImageClassification(ViTConfig(**SIZES, num_labels=0))
    assert not get_peft_model(model, NoahConfig(architecture=MIX)).peft_config["default"].modules_to_save
