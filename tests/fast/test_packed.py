"""Frozen Linears on weights that are stacked, laid out and cast once: the same numbers as from plain ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.fast import hardware, packed
from peft_noah.fast.packed import FrozenLinears, LowRank, PackedLinear, can_pack, is_frozen_linear


def frozen(inputs, outputs, bias=True):
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@pytest.fixture
def leaves():
    torch.manual_seed(0)
    return frozen(24, 16), frozen(24, 8, bias=False), frozen(24, 32)


def plain(x, leaves):
    return torch.cat([F.linear(x, leaf.weight, leaf.bias) for leaf in leaves], -1)


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_equal_plain_linears(leaves, pack, dtype, transpose):
    leaves = tuple(leaf.to(dtype) for leaf in leaves)
    x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    linears = FrozenLinears(pack, transpose)
    for inputs in (x, x[:, :1], x.transpose(0, 1)):
        y, expected = linears(inputs, leaves), plain(inputs, leaves)
        torch.testing.assert_close(y, expected)
        g = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g))


def test_float32_weights_are_packed_on_a_cpu_with_onednn(leaves):
    assert can_pack(leaves[0].weight, torch.float32) == torch.backends.mkldnn.is_available()
    assert not can_pack(leaves[0].weight, torch.float64)


@pytest.mark.parametrize("transpose", [True, False])
def test_updates_of_low_rank_are_those_of_plain_products(leaves, transpose):
    if not can_pack(leaves[0].weight, torch.float32):
        pytest.skip("weights are not packed here")
    linears = FrozenLinears(transpose=transpose)
    x = torch.randn(2, 5, 24, requires_grad=True)
    widths = leaves[0].out_features, leaves[2].out_features
    first = LowRank(0, torch.randn(2, 24), torch.randn(2, widths[0]))
    last = LowRank(sum(leaf.out_features for leaf in leaves[:2]), torch.randn(3, 24), torch.randn(3, widths[1]))
    trained = [x, *(weight.requires_grad_() for update in (first, last, first) for weight in update[1:])]

    def expected():
        y = list(plain(x, leaves).split([leaf.out_features for leaf in leaves], -1))
        for index, (_, down, up) in ((0, first), (2, last), (0, first)):
            y[index] = y[index] + x @ down.T @ up
        return torch.cat(y, -1)

    def gradients(y):
        grads = torch.autograd.grad(y.square().sum(), trained, create_graph=True)
        return *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), trained)

    y = linears(x, leaves, updates=[first, last, first])
    torch.testing.assert_close(y, expected())
    torch.testing.assert_close(gradients(y), gradients(expected()), rtol=1e-4, atol=1e-3)
    (down,) = torch.autograd.grad(linears(x.detach(), leaves, updates=[first]).sum(), [first.down])
    torch.testing.assert_close(down, first.up.sum(1, keepdim=True) * x.detach().sum((0, 1)))


def test_updates_are_added_to_weights_that_were_first_used_while_none_were_packed(leaves):
    if not can_pack(leaves[0].weight, torch.float32):
        pytest.skip("weights are not packed here")
    linears, x = FrozenLinears(pack=False), torch.randn(2, 5, 24)
    linears(x, leaves[:1])
    linears.pack = True
    update = LowRank(0, torch.randn(2, 24), torch.randn(2, leaves[0].out_features))
    expected = plain(x, leaves[:1]) + x @ update.down.T @ update.up
    torch.testing.assert_close(linears(x, leaves[:1], updates=[update]), expected)


@pytest.mark.parametrize("transpose", [True, False])
def test_gradients_of_gradients_exist(leaves, transpose):
    x = torch.randn(5, 24, requires_grad=True)
    linears = FrozenLinears(transpose=transpose)

    def penalty(y):
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    torch.testing.assert_close(penalty(linears(x, leaves)), penalty(plain(x, leaves)))


def test_a_changed_weight_is_seen(leaves):
    linears, x = FrozenLinears(), torch.randn(5, 24)
    linears(x, leaves)
    with torch.no_grad():
        leaves[2].weight.mul_(2)
    torch.testing.assert_close(linears(x, leaves), plain(x, leaves))
    leaves[0].weight.data = torch.randn(16, 24)
    torch.testing.assert_close(linears(x, leaves), plain(x, leaves))


def test_other_weights_are_used_until_their_version_changes(leaves):
    linears, x = FrozenLinears(), torch.randn(5, 24)
    calls = []

    def weights():
        calls.append(0)
        return [leaf.weight + 1 for leaf in leaves]

    first = linears(x, leaves, (1,), weights)
    linears(x, leaves, (1,), weights)
    assert len(calls) == 1
    linears(x, leaves, (2,), weights)
    assert len(calls) == 2
    assert len(list(linears)) == 1  # the last ones alone are kept
    torch.testing.assert_close(first, plain(x, leaves) + x.sum(-1, keepdim=True))
    torch.testing.assert_close(linears(x, leaves), plain(x, leaves))


def test_wide_float32_weights_are_left_to_mkl_where_it_is_faster(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    wide, narrow = torch.empty(2304, 768), torch.empty(3072, 384)
    for fast in (False, True):
        monkeypatch.setattr(packed, "_MKL_IS_FAST", fast)
        assert (can_pack(wide, torch.float32), can_pack(narrow, torch.float32)) == (not fast, True)
    assert can_pack(wide, torch.bfloat16) == hardware.has_packed_kernels(torch.bfloat16)


@pytest.mark.parametrize("transpose", [True, False])
def test_weights_first_used_without_gradients_serve_with_them(leaves, transpose):
    linears, x = FrozenLinears(transpose=transpose), torch.randn(5, 24, requires_grad=True)
    with torch.inference_mode():
        linears(x.detach(), leaves)
    y = linears(x, leaves)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(plain(x, leaves).sum(), x))


def test_autocast_rounds_as_a_plain_linear_does(leaves):
    x = torch.randn(5, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = FrozenLinears()(x, leaves), plain(x, leaves)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, atol=1e-2, rtol=1e-2)  # one unit in the last of 8 bits
    g = torch.ones_like(y)
    gradients = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(*gradients, atol=5e-2, rtol=1e-2)


def test_float32_gradients_need_no_second_copy(leaves):
    linears, x = FrozenLinears(transpose=False), torch.randn(5, 24, requires_grad=True)
    y, expected = linears(x, leaves), plain(x, leaves)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g))
    (entry,) = linears
    assert entry.transposed is None
    assert [part.data_ptr() for part in entry.parts] == [leaf.weight.data_ptr() for leaf in leaves]


def test_a_weight_changed_before_its_gradient_is_an_error_as_in_a_plain_linear(leaves):
    x = torch.randn(5, 24, requires_grad=True)
    y = FrozenLinears(transpose=False)(x, leaves)
    with torch.no_grad():
        leaves[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_other_weights_are_not_kept_beside_their_packed_form(leaves):
    linears = FrozenLinears(transpose=False)
    linears(torch.randn(5, 24), leaves, (1,), lambda: [leaf.weight + 1 for leaf in leaves])
    assert [entry.parts for entry in linears] == [()]


def test_a_copy_keeps_nothing(leaves):
    linears = FrozenLinears()
    linears(torch.randn(5, 24), leaves)
    assert not list(copy.deepcopy(linears))


def test_what_is_trained_quantised_or_of_another_class_is_not_frozen():
    class Own(nn.Linear):
        pass

    assert is_frozen_linear(frozen(3, 3))
    assert not is_frozen_linear(nn.Linear(3, 3))
    assert not is_frozen_linear(Own(3, 3).requires_grad_(False))
    assert not is_frozen_linear(nn.LayerNorm(3))
    half_trained = frozen(3, 3)
    half_trained.bias.requires_grad_(True)
    assert not is_frozen_linear(half_trained)


def test_a_packed_linear_that_is_unfrozen_is_plain_again():
    leaf = frozen(24, 8)
    leaf.__class__, leaf.noah_packed = PackedLinear, FrozenLinears()
    leaf.weight.requires_grad_(True)
    leaf(torch.randn(5, 24)).sum().backward()
    assert leaf.weight.grad is not None
