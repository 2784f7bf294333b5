"""A stranger adds a prompt module: a scale and a shift, in this file alone, without a change anywhere in the package."""

import random

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from conftest import make_model
from peft import PeftModel, get_peft_model
from torch import nn

from peft_noah import Architecture, NoahConfig, PromptModule, SearchSpace, register_prompt_module, search
from peft_noah.data.images import ImageSplit
from peft_noah.fast import fast_forward
from peft_noah.run.models import add_one_module
from peft_noah.training import TrainingSettings, train
from peft_noah.training.processes import make_accelerator
from peft_noah.training.sampling import ArchitectureSampler
from peft_noah.tuner.labels import architecture_table, module_colour
from peft_noah.tuner.prompts import PROMPT_MODULES


class Gain(PromptModule):
    """Scale and shift of the MLP's output, ``y' = gamma * y + beta`` (arXiv 2210.08823); dim 1: it is there."""

    name = "gain"
    site = "mlp_output"
    label = "Gain (on)"
    colour = "#882255"
    dims = (1,)
    alone = 1
    is_tokenwise = True

    def shapes(self, dim):
        return {"gamma": (dim, self.out_features), "beta": (dim, self.out_features)}

    def reset_parameters(self, config):
        nn.init.ones_(self.gamma)
        nn.init.zeros_(self.beta)
        if not config.init_weights:
            nn.init.normal_(self.gamma, mean=1.0)
            nn.init.normal_(self.beta)

    def forward(self, x, y):
        gamma, beta = self.active("gamma"), self.active("beta")
        return (self.cast(y, gamma) * gamma[0] + beta[0]).to(y.dtype)


@pytest.fixture(autouse=True)
def registered():
    before = dict(PROMPT_MODULES)
    register_prompt_module(Gain)
    yield
    PROMPT_MODULES.clear()
    PROMPT_MODULES.update(before)


SPACE = {"modules": ("lora", "vpt", "gain")}


def supernet(blocks=4, **options):
    config = {"search_space": SearchSpace.vtab(blocks, **SPACE), "init_weights": False, **options}
    return get_peft_model(make_model(num_hidden_layers=blocks), NoahConfig(**config)).eval()


def logits(model, pixels):
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def test_a_named_space_gives_it_the_dims_that_it_asks_for():
    space = SearchSpace.vtab(4, **SPACE)
    assert space.dims == {"lora": (1, 5, 10), "vpt": (1, 5, 10), "gain": (1,)}


def test_it_computes_its_formula_and_counts(pixels):
    model = supernet()
    model.set_architecture({"gain": [0, 1, 0, 0]})
    assert model.count_parameters() == 2 * 24
    fc2 = model.base_model.model.vit.layers[1].mlp.fc2
    gain, x = fc2.noah_gain["default"], torch.randn(2, 5, 48)
    torch.testing.assert_close(fc2(x), fc2.base_layer(x) * gain.gamma + gain.beta)


def test_it_is_searched_cut_out_saved_loaded_and_merged_as_the_others_are(pixels, tmp_path):
    model = supernet()
    space, target = model.get_search_space(), logits(model, pixels)

    def score(architecture):
        model.set_architecture(architecture)
        return float(-(logits(model, pixels) - target).square().mean())

    best = search(space, score, model.count_parameters, budget=2_000).best.architecture
    assert set(best) == {"lora", "vpt", "gain"}
    model.set_architecture(best)
    model.extract().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, pixels), logits(model, pixels))
    model.set_architecture({"gain": [1] * 4})
    with pytest.raises(ValueError, match="has active gain modules"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="a LoraConfig cannot express gain"):
        model.export_lora()


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_it_is_fast(recipe, pixels):
    model = supernet(recipe=recipe)
    for seed in range(4):
        architecture = model.get_search_space().sample(random.Random(seed))
        model.set_architecture(architecture)
        expected = logits(model, pixels)
        with fast_forward(model) as fast:
            torch.testing.assert_close(logits(model, pixels), expected, atol=1e-5, rtol=1e-5)
            assert fast.reason is None


def test_it_is_compared_alone_and_has_its_label_and_colour():
    model = add_one_module(make_model(), "gain", "paper")
    assert model.get_architecture() == Architecture(gain=[1] * 4)
    assert architecture_table({"gain": (1, 0)}).splitlines()[2] == "| Gain (on) |   1 |   0 |"
    assert module_colour("gain") == "#882255"


class Residual(Gain):
    """The same with ``gamma - 1`` stored, so that zeros change nothing: what a supernet of one shape needs."""

    def forward(self, x, y):
        return y + y * self.active("gamma")[0] + self.active("beta")[0]


@pytest.mark.parametrize("cls", [Residual, Gain])
def test_a_supernet_is_compiled_only_if_zeros_behind_a_slice_change_nothing(cls, monkeypatch):
    monkeypatch.setitem(PROMPT_MODULES, "gain", cls)
    pixels = torch.randint(0, 256, (7, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def fit(compiled):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = make_accelerator()
        if compiled:
            accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="aot_eager", fullgraph=True, dynamic=False)
        model = supernet(blocks=2)
        train(
            model,
            ImageSplit(pixels, torch.arange(7) % 5),
            lambda images: images.float() / 255 - 0.5,
            TrainingSettings(epochs=1, batch_size=4),
            accelerator,
            sampler=ArchitectureSampler(model.get_search_space()),
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    if cls is Residual:
        torch.testing.assert_close(fit(compiled=True), fit(compiled=False), rtol=0, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="this supernet cannot be compiled: its outputs differ"):
            fit(compiled=True)
