"""What a device multiplies fast, asked of torch.

Much of this has no public name in torch: an answer that this torch cannot give is "no", which costs speed and nothing else.
"""

from __future__ import annotations

import torch


def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 in tiles (Intel's AMX)."""
    return _ask(torch.cpu, "_is_amx_tile_supported")


def has_packed_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes weights of ``dtype`` in a layout of its own, on the CPU."""
    mkldnn = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not (hasattr(mkldnn, "_linear_pointwise") and hasattr(mkldnn, "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _ask(mkldnn, "_is_mkldnn_bf16_supported"))


def has_mkl_for_intel() -> bool:
    """Whether PyTorch's own float32 products are MKL's, on a processor that MKL is made for."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we take
    return torch.backends.mkl.is_available() and "Intel" in str(capabilities.get("cpu_name"))


def _ask(module: object, question: str) -> bool:
    return bool(getattr(module, question, bool)())
