"""What transformers offers a model works with a NOAH adapter on it: memory, masks, compilation, export, Trainer."""

import copy

import pytest
import torch
from conftest import FAMILIES, make_model
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, ViTImageProcessor, pipeline

from peft_noah import Architecture, NoahConfig
from peft_noah.tuner.layer import NoahLayer

ARCHITECTURE = Architecture(lora=[3, 0, 2, 1], adapter=[0, 2, 0, 1], vpt=[2, 3, 0, 0])
#: tokens that each block reads beside the image's 5: their own, or with the released code those that run on
READS = {"paper": [2, 3, 0, 0], "released": [2, 3, 3, 3]}
#: length of hidden_states: the first and what runs on past VPT's depth carry tokens, the last never does
HIDDEN = {"paper": [7, 5, 5, 5, 5], "released": [7, 5, 8, 8, 5]}
LABELS = torch.tensor([0, 1, 2])

each_model = pytest.mark.parametrize(("family", "recipe"), [(f, r) for f in FAMILIES for r in HIDDEN])


def make_subnet(family="vit", recipe="paper", **options):
    config = NoahConfig(recipe=recipe, architecture=ARCHITECTURE, init_weights=False, **options)
    return get_peft_model(make_model(family), config).eval()


def gradients(model, pixels, **inputs):
    torch.manual_seed(0)  # dropout and stochastic depth are part of the test
    model.train()(pixel_values=pixels, labels=LABELS, **inputs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------- gradient checkpointing


def count_calls(model):
    calls = []
    block_0 = next(m for name, m in model.named_modules() if isinstance(m, NoahLayer) and ".0." in name)
    block_0.register_forward_hook(lambda *_: calls.append(1))
    return calls


@each_model
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_recomputes_and_gives_equal_gradients(family, recipe, use_reentrant, pixels):
    model = make_subnet(family, recipe)
    wanted = gradients(copy.deepcopy(model), pixels)
    model.base_model.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    if use_reentrant:  # a frozen embedding gives block 0 an input without gradient, which re-entrant mode cannot use
        model.enable_input_require_grads()
    calls = count_calls(model)
    found = gradients(model, pixels)
    assert len(calls) == 2  # once forward, once again on the way back
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_gradient_checkpointing_serves_a_supernet(pixels):
    model = get_peft_model(make_model(), NoahConfig(init_weights=False))
    model.set_architecture(Architecture(lora=[5, 1, 0, 0], adapter=[1, 0, 0, 0], vpt=[5, 1, 0, 0]))
    wanted = gradients(copy.deepcopy(model), pixels)
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(model, pixels)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# ---------------------------------------------------------------------- outputs and inputs


@each_model
def test_hidden_states_and_attentions_have_the_stated_shapes(family, recipe, pixels):
    model = make_subnet(family, recipe)
    model.base_model.model.set_attn_implementation("eager")
    found = model(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in found.hidden_states] == [(3, length, 24) for length in HIDDEN[recipe]]
    lengths = [5 + tokens for tokens in READS[recipe]]
    assert [tuple(a.shape) for a in found.attentions] == [(3, 3, length, length) for length in lengths]


@each_model
def test_eager_and_sdpa_attention_agree(family, recipe, pixels):
    model, twin = make_subnet(family, recipe), make_subnet(family, recipe)
    model.base_model.model.set_attn_implementation("eager")
    twin.base_model.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(pixel_values=pixels).logits, twin(pixel_values=pixels).logits)


@each_model
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_hides_patches_and_nothing_else(family, recipe, attention, pixels):
    model = make_subnet(family, recipe)
    model.base_model.model.set_attn_implementation(attention)

    def cls_token(images, mask=None):
        found = model(pixel_values=images, attention_mask=mask, output_hidden_states=True)
        return found.hidden_states[-1][:, 0]

    mask, changed = torch.ones(3, 5), pixels.clone()
    torch.testing.assert_close(cls_token(pixels, mask), cls_token(pixels))
    mask[:, 3:] = 0  # patches 2 and 3: the lower half
    changed[:, :, 8:] = 7.0
    torch.testing.assert_close(cls_token(changed, mask), cls_token(pixels, mask))
    assert not torch.allclose(cls_token(changed), cls_token(pixels), atol=1e-3)
    assert not torch.allclose(cls_token(pixels, mask), cls_token(pixels), atol=1e-3)


@each_model
def test_images_of_another_size_are_taken(family, recipe):
    model = make_subnet(family, recipe)
    options = {"interpolate_pos_encoding": True} if family == "vit" else {}  # DINOv2 always interpolates
    found = model(pixel_values=torch.randn(2, 3, 32, 24), output_hidden_states=True, **options)
    assert found.logits.shape == (2, 5)
    assert [h.shape[1] for h in found.hidden_states] == [length + 12 - 4 for length in HIDDEN[recipe]]


# ---------------------------------------------------------------------- compilation and export


@each_model
def test_a_subnet_compiles_to_a_single_graph(family, recipe, pixels):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    model = make_subnet(family, recipe)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for images in (pixels, pixels + 1.0):
            assert torch.equal(compiled(pixel_values=images).logits, model(pixel_values=images).logits)
    assert counter.frame_count == 1


@pytest.mark.parametrize("recipe", HIDDEN)
def test_a_compiled_subnet_trains_in_a_single_graph_with_equal_gradients(recipe, pixels):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = make_subnet(recipe=recipe, dropout=0.0, drop_path=0.0)  # compiled code draws its random numbers elsewhere
    wanted = gradients(copy.deepcopy(model), pixels)
    torch.compile(model.train(), fullgraph=True, backend=counter)(pixel_values=pixels, labels=LABELS).loss.backward()
    assert counter.frame_count == 1
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, wanted[name])


@each_model
def test_an_exported_subnet_equals_eager_at_any_batch_size(family, recipe, pixels):
    # the model inside: torch.export cannot tell the arguments of PeftModel.forward(*args, **kwargs) apart
    model = make_subnet(family, recipe).base_model.model
    batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(model, (), {"pixel_values": pixels}, dynamic_shapes=batch).module()
    for images in (pixels, torch.randn(7, 3, 16, 16)):
        torch.testing.assert_close(program(pixel_values=images).logits, model(pixel_values=images).logits)


@pytest.mark.parametrize("recipe", HIDDEN)
def test_a_subnet_in_onnx_equals_eager_on_onnxruntime(recipe, pixels, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values=pixel_values).logits

    model = Logits(make_subnet(recipe=recipe)).eval()
    torch.onnx.export(model, (pixels,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(pixels), atol=1e-4, rtol=1e-4)  # other kernels


# ---------------------------------------------------------------------- pipeline and Trainer


@pytest.mark.parametrize("road", ["PeftModel", "load_adapter", "folder"])
def test_the_pipeline_classifies_with_a_loaded_adapter(road, tmp_path):
    from PIL import Image

    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    make_model().save_pretrained(tmp_path / "backbone")
    base = type(make_model()).from_pretrained(tmp_path / "backbone")
    plain = copy.deepcopy(base)
    model = get_peft_model(base, NoahConfig(architecture=ARCHITECTURE, init_weights=False)).eval()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save.default.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 9.0, 4.0]))
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    if road == "load_adapter":
        plain.load_adapter(tmp_path / "adapter")
    served = {"PeftModel": model, "load_adapter": plain, "folder": str(tmp_path / "adapter")}[road]
    image = Image.new("RGB", (20, 20), (200, 30, 30))
    answer = pipeline("image-classification", model=served, image_processor=processor)(image)
    assert answer[0]["label"] == "LABEL_3" and answer[1]["label"] == "LABEL_4"
    inputs = processor(image, return_tensors="pt")
    assert answer[0]["score"] == pytest.approx(model(**inputs).logits.softmax(-1)[0, 3].item(), abs=1e-5)


@pytest.mark.parametrize("recipe", HIDDEN)
def test_trainer_trains_saves_and_ends_with_the_best_checkpoint(recipe, tmp_path):
    model = make_subnet(recipe=recipe)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    data = Dataset.from_dict({"pixel_values": torch.randn(6, 3, 16, 16).tolist(), "labels": [0, 1, 2, 3, 4, 0]})
    scores = iter([0.9, 0.5, 0.1])  # the first epoch is called best, so that the last weights would be wrong
    arguments = TrainingArguments(
        output_dir=tmp_path,
        num_train_epochs=3,
        per_device_train_batch_size=3,
        learning_rate=0.1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=lambda _: {"score": next(scores)}
    )
    assert trainer.train().global_step == 6
    checkpoints = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2") and checkpoints[-1] == "checkpoint-6"

    def weights(name):
        return load_file(tmp_path / name / "adapter_model.safetensors")

    trainer.save_model(tmp_path / "final")
    best, last, final = weights("checkpoint-2"), weights("checkpoint-6"), weights("final")
    assert all(torch.equal(final[key], best[key]) for key in best)
    assert any(not torch.equal(last[key], best[key]) for key in best)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
