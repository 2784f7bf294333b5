"""What is asked of torch about the hardware, also of a torch that cannot answer."""

import pytest
import torch

from peft_noah.fast import hardware


@pytest.mark.parametrize("amx", [False, True])
def test_amx_is_what_torch_says(amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert hardware.has_amx() == amx


def test_what_this_torch_cannot_tell_counts_as_missing(monkeypatch):
    for name in ("_is_amx_tile_supported", "get_capabilities"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not hardware.has_amx() and not hardware.has_mkl_for_intel()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not hardware.has_packed_kernels(torch.float32) and not hardware.has_packed_kernels(torch.bfloat16)


def test_packed_kernels_are_onednns_and_can_be_switched_off():
    assert hardware.has_packed_kernels(torch.float32) == torch.backends.mkldnn.is_available()
    assert not hardware.has_packed_kernels(torch.float64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not hardware.has_packed_kernels(torch.float32)
