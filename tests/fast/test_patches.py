"""The patch embedding as a product against the convolution that it is."""

import copy

import pytest
import torch
from test_fast import build
from torch import nn

from peft_noah.fast import fast_forward
from peft_noah.fast.patches import PatchProduct, is_patch_embedding


@pytest.mark.parametrize("size", [(12, 12), (14, 13), (4, 15)])
@pytest.mark.parametrize("window", [4, (4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_gives_output_and_gradients_of_the_convolution(size, window, bias):
    conv = nn.Conv2d(3, 8, window, stride=window, bias=bias).double()
    product = copy.deepcopy(conv)
    assert is_patch_embedding(product)
    product.__class__ = PatchProduct
    assert is_patch_embedding(product)
    x = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    expected, found = conv(x), product(x)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    expected = torch.autograd.grad(expected, [x, *conv.parameters()], grad)
    torch.testing.assert_close(torch.autograd.grad(found, [x, *product.parameters()], grad), expected)


@pytest.mark.parametrize(
    "leaf",
    [
        nn.Conv2d(3, 8, 4, stride=2),
        nn.Conv2d(3, 8, 4, stride=4, padding=1),
        nn.Conv2d(3, 8, 1, padding="same"),
        nn.Conv2d(3, 9, 4, stride=4, groups=3),
        nn.Conv2d(3, 8, 4, stride=4, dilation=2),
        nn.Conv1d(3, 8, 4, stride=4),
        type("OwnConv2d", (nn.Conv2d,), {})(3, 8, 4, stride=4),
    ],
    ids=repr,
)
def test_other_leaves_are_left_alone(leaf):
    assert not is_patch_embedding(leaf)


@pytest.mark.parametrize("family", ["vit", "dinov2", "deit"])
def test_a_model_computes_its_patches_so_and_then_no_more(family, pixels):
    model = build(family).eval()
    kinds = {name: type(module) for name, module in model.named_modules()}
    expected = model(pixel_values=pixels.double()).logits
    with fast_forward(model):
        assert sum(isinstance(module, PatchProduct) for module in model.modules()) == 1
        torch.testing.assert_close(model(pixel_values=pixels.double()).logits, expected)
        copied = copy.deepcopy(model)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    with fast_forward(model, patches_by_product=False):
        assert not any(isinstance(module, PatchProduct) for module in model.modules())
    torch.testing.assert_close(copied(pixel_values=pixels.double()).logits, expected)
