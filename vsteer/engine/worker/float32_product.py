"""A product of bfloat16 matrices whose sums stay float32, on a CPU.

torch has one for GPUs alone. The MKL that its builds for x86 carry has another, under the name and with the
arguments that MKL documents.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

NAME = "cblas_gemm_bf16bf16f32"
# MKL's constants
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112
_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"

# x [n, k] and weight [m, k], both bfloat16, into [n, m] of float32
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@cache
def bfloat16_product() -> Product | None:
    """None where this torch has no MKL, or this CPU no instructions for bfloat16."""
    if not (torch._C.has_mkl and torch.cpu._is_avx512_bf16_supported()):
        return None
    try:
        function = getattr(ctypes.CDLL(str(_LIBRARY)), NAME)
    except (OSError, AttributeError):
        return None
    whole, real, place = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.restype = None
    function.argtypes = [
        *(whole,) * 6, real, place, whole, place, whole, real, place, whole,
    ]  # fmt: skip

    def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        rows, columns, inner = len(x), len(weight), x.shape[1]
        # what MKL reads and writes by address must be just that
        sound = (
            (x.dtype, weight.dtype, out.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
            and (x.shape, weight.shape, out.shape) == ((rows, inner), (columns, inner), (rows, columns))
            and all(one.is_contiguous() and one.device.type == "cpu" for one in (x, weight, out))
        )
        if not sound:
            raise ValueError(f"no product of {x.shape} {x.dtype} and {weight.shape} {weight.dtype}")
        function(
            _ROW_MAJOR, _AS_IT_IS, _TRANSPOSED, rows, columns, inner,
            1.0, x.data_ptr(), inner, weight.data_ptr(), inner,
            0.0, out.data_ptr(), columns,
        )  # fmt: skip

    return product
