"""What only a GPU shows; skipped where there is none."""

import pytest
import torch
from conftest import make_model
from peft import get_peft_model
from test_fixed_shapes import fit, images  # noqa: F401

from peft_noah import NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.training import ArchitectureSampler, TrainingSettings, make_accelerator, train
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.interruption import Interrupted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_images_that_fit_lie_in_the_gpus_memory(images, monkeypatch):  # noqa: F811
    resident = (images + images).on(torch.device("cuda"))
    batch = resident.__getitems__([8, 0, 13])
    assert batch["pixel_values"].is_cuda
    expected = (images + images).__getitems__([8, 0, 13])
    assert torch.equal(batch["pixel_values"].cpu(), expected["pixel_values"])
    assert torch.equal(batch["labels"], expected["labels"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 7 * 3 * 16 * 16 - 4, 0))
    assert images.on(torch.device("cuda")) is images


@pytest.mark.parametrize("options", [{}, {"compile_mode": "reduce-overhead"}, {"compile_mode": "default"}])
def test_a_gpu_trains_what_a_cpu_trains(images, options):  # noqa: F811
    expected, _ = fit(images, cpu=True)
    weights, model = fit(images, **options)
    assert next(model.parameters()).is_cuda
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-4)


def test_a_training_goes_on_after_an_interruption(images, tmp_path):  # noqa: F811
    def run(checkpoint=None, stop_at=None):
        torch.manual_seed(0)
        model = get_peft_model(make_model(), NoahConfig(dropout=0.1))

        def on_step(step, steps, loss):
            if step == stop_at:
                raise Interrupted("stopped by the test", 15)

        train(
            model,
            images,
            lambda pixels: pixels.float() / 255 - 0.5,
            TrainingSettings(epochs=4, batch_size=4),
            make_accelerator(),
            sampler=ArchitectureSampler(model.get_search_space()),
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    expected = run()
    folder = CheckpointFolder(tmp_path / "checkpoint", every_steps=1)
    with pytest.raises(Interrupted):
        run(folder, stop_at=5)
    torch.testing.assert_close(run(folder), expected, rtol=0, atol=1e-5)


def test_the_fast_forward_keeps_logits_and_gradients_in_bfloat16():
    model = get_peft_model(make_model(), NoahConfig(init_weights=False)).cuda()
    pixels = torch.randn(3, 3, 16, 16, device="cuda")

    def compute():
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(pixel_values=pixels).logits
        logits.float().square().sum().backward()
        return [logits.float(), *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = compute()
    with fast_forward(model) as fast:
        found = compute()
        with model.fixed_shapes():
            masked = compute()
    assert fast.reason is None
    for values in (found, masked):
        for one, other in zip(values, expected, strict=True):
            assert (one - other).norm() <= 0.05 * other.norm()
