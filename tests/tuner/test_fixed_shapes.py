"""Subnets by masks instead of slices: the same outputs and gradients, in shapes that a compiler sees once."""

import random

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from conftest import make_model
from peft import get_peft_model
from test_fast import ARCHITECTURES, build, logits_and_gradients

from peft_noah import NoahConfig
from peft_noah.data.images import ImageSplit
from peft_noah.fast import block, fast_forward
from peft_noah.run.settings import RunSettings
from peft_noah.training import ArchitectureSampler, TrainingSettings, make_accelerator, train

NOTHING = {"lora": [0, 0, 0, 0]}


def subnets(model, count=3):
    rng = random.Random(0)
    return [*ARCHITECTURES, NOTHING, *(model.get_search_space().sample(rng) for _ in range(count))]


def with_zeros(gradients, like):
    return {name: gradients.get(name, torch.zeros_like(value)) for name, value in like.items()}


@pytest.mark.parametrize("prompts_as_keys", [True, False])
@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_masks_give_the_logits_and_gradients_of_slices(family, recipe, prompts_as_keys, pixels):
    model = build(family, recipe, adapter_activation="sigmoid").train()  # sigmoid(0) is not 0
    for rows in subnets(model):
        model.set_architecture(rows)
        expected, gradients = logits_and_gradients(model, pixels.double())
        with fast_forward(model, prompts_as_keys=prompts_as_keys) as fast, model.fixed_shapes():
            logits, found = logits_and_gradients(model, pixels.double())
        assert fast.reason is None
        torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(found, with_zeros(gradients, found), atol=1e-10, rtol=1e-10)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == found.keys()


@pytest.mark.parametrize("apart", [("cpu",), ()], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_compiler_sees_one_graph_for_all_subnets(recipe, apart, pixels, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    monkeypatch.setattr(block, "_COMPILED_APART", apart)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = build(recipe=recipe).train()
    with fast_forward(model) as fast, model.fixed_shapes():
        compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
        for rows in subnets(model):
            model.set_architecture(rows)
            expected = logits_and_gradients(model, pixels.double())
            found = logits_and_gradients(compiled, pixels.double())
            torch.testing.assert_close(found[0], expected[0], atol=1e-10, rtol=1e-10)
            gradients = {f"_orig_mod.{name}": value for name, value in expected[1].items()}
            torch.testing.assert_close(found[1], gradients, atol=1e-10, rtol=1e-10)
        assert fast.reason is None
    assert counter.frame_count == 1


def test_lora_is_added_to_the_weights_where_nothing_comes_between():
    model = build(dropout=0.5).train()
    query = model.base_model.model.vit.layers[1].attention.q_proj
    assert not block._is_linear_now(query)
    assert block._is_linear_now(query.base_layer)
    assert block._is_linear_now(query.eval())
    model.set_architecture(NOTHING)
    assert not block._is_linear_now(query)  # weights that are left out need gradients of zero
    with model.fixed_shapes():
        assert block._is_linear_now(query)


def test_a_compiled_backbone_of_half_precision_takes_updates_of_float32(pixels, monkeypatch):
    monkeypatch.setattr(block, "_COMPILED_APART", ())
    torch._dynamo.reset()
    model = get_peft_model(make_model().bfloat16(), NoahConfig(init_weights=False)).eval()
    model.set_architecture({"lora": [5, 5, 5, 5]})
    assert model.base_model.model.vit.layers[0].attention.q_proj.noah_lora["default"].up.dtype == torch.float32
    with torch.inference_mode(), fast_forward(model):
        expected = model(pixel_values=pixels.bfloat16()).logits
        logits = torch.compile(model, backend="eager", fullgraph=True)(pixel_values=pixels.bfloat16()).logits
    torch.testing.assert_close(logits, expected)


def test_everything_is_as_before_when_it_ends(pixels):
    model = build().eval()
    model.set_architecture(ARCHITECTURES[1])
    expected = model(pixel_values=pixels.double()).logits
    with fast_forward(model), model.fixed_shapes():
        assert model.get_architecture().to_dict() == ARCHITECTURES[1]
        model.set_architecture(NOTHING)
        model.set_architecture(ARCHITECTURES[1])
        torch.testing.assert_close(model(pixel_values=pixels.double()).logits, expected)
    assert torch.equal(model(pixel_values=pixels.double()).logits, expected)


def test_vpt_needs_the_fast_forward(pixels):
    model = build()
    with model.fixed_shapes(), pytest.raises(RuntimeError, match="fast_forward` alone"):
        model(pixel_values=pixels.double())


def test_blocks_that_store_different_numbers_of_tokens_are_refused():
    model = build(architecture={"vpt": [4, 4, 2, 2]})
    with pytest.raises(ValueError, match=r"store \[4, 4, 2, 2\] VPT tokens, and all must store equally many"):
        with model.fixed_shapes():
            pass
    with build(architecture={"lora": [4, 4, 2, 0]}).fixed_shapes():  # no tokens: nothing to agree on
        pass


@pytest.fixture
def images():
    """One batch of 4 and one of 3 in each epoch."""
    pixels = torch.randint(0, 256, (7, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSplit(pixels, torch.arange(7) % 5)


def fit(images, dynamo_plugin=None, **kwargs):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator(**kwargs)
    if dynamo_plugin is not None:
        accelerator.state.dynamo_plugin = dynamo_plugin
    model = get_peft_model(make_model(num_hidden_layers=2), NoahConfig())
    train(
        model,
        images,
        lambda pixels: pixels.float() / 255 - 0.5,
        TrainingSettings(epochs=2, batch_size=4),
        accelerator,
        sampler=ArchitectureSampler(model.get_search_space()),
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    return {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}, model


def test_a_compiled_supernet_trains_the_same_weights_in_one_graph(images):
    from torch._dynamo.testing import CompileCounterWithBackend

    expected, _ = fit(images)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plugin = TorchDynamoPlugin(backend="aot_eager", fullgraph=True, dynamic=False)
    plugin.to_kwargs = lambda: {"backend": counter, "fullgraph": True, "dynamic": False}
    weights, model = fit(images, dynamo_plugin=plugin)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    assert counter.frame_count == 1  # the short batch is filled up
    assert model.base_model._fixed is None


@pytest.mark.parametrize(
    ("settings", "mode"),
    [({}, None), ({"compile": True}, "reduce-overhead"), ({"compile": True, "accumulate": 2}, "default")],
)
def test_the_mode_of_the_compiler_follows_from_the_settings(settings, mode):
    assert RunSettings(**settings).compile_mode == mode
    plugin = make_accelerator(compile_mode=mode).state.dynamo_plugin  # whatever an earlier one had
    assert (plugin.backend.value.lower(), plugin.mode) == ("inductor" if mode else "no", mode or "default")
    make_accelerator()
