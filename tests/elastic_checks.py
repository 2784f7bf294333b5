"""What holds for every supernet, whatever modules it carries; asserted for some random subnets of a search space."""

import random

import torch
from conftest import make_model
from peft import PeftModel

from peft_noah.fast import fast_forward


def logits(model, pixels):
    return model(pixel_values=pixels.double()).logits


def assert_subnets_are_cut_out_saved_and_loaded(model, space, pixels, folder):
    """A subnet that is extracted, and one that is saved and loaded, computes the same bits as the active one."""
    for seed in range(3):
        architecture = space.sample(random.Random(seed))
        model.set_architecture(architecture)
        subnet = model.extract()
        assert torch.equal(logits(subnet, pixels), logits(model, pixels))
        assert subnet.count_parameters() == model.count_parameters()
        subnet.save_pretrained(folder / str(seed))
        loaded = PeftModel.from_pretrained(make_model(), folder / str(seed), autocast_adapter_dtype=False)
        assert loaded.get_architecture() == architecture
        assert torch.equal(logits(loaded.double().eval(), pixels), logits(subnet, pixels))


def assert_fast_and_fixed_shapes_keep_outputs(model, space, pixels, subnets=3):
    """Logits and gradients are those of the plain forward, in `fast_forward`, in `fixed_shapes` and while scoring."""

    def run():
        model.zero_grad()
        output = logits(model, pixels)
        output.square().sum().backward()
        return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    was_training = model.training
    for seed in range(subnets):
        model.set_architecture(space.sample(random.Random(seed)))
        expected = run()
        with fast_forward(model) as fast:
            torch.testing.assert_close(run(), expected, atol=1e-9, rtol=1e-9)
            assert fast.reason is None
            with model.fixed_shapes():
                fixed = run()
            with torch.inference_mode():
                torch.testing.assert_close(logits(model.eval(), pixels), expected[0], atol=1e-9, rtol=1e-9)
            model.train(was_training)
        torch.testing.assert_close(fixed[0], expected[0], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close({n: fixed[1][n] for n in expected[1]}, expected[1], atol=1e-9, rtol=1e-9)
