"""torch's own sparse products: CSR (MKL on a CPU, cuSPARSE on a GPU) and 2:4 on a GPU.

Those of a GPU are the ops of `prunekern.rivals`, which pad and pack for them.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from prunekern import compress, ops, pack
from rivals.rival import Product, Rival, always, no_gpu


def _csr(dtype: torch.dtype, weight: Tensor, tokens: int) -> Product:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        w = weight.to(dtype).to_sparse_csr()
    indices = (t.int() for t in (w.crow_indices(), w.col_indices()))
    w = torch.sparse_csr_tensor(*indices, w.values(), w.shape, check_invariants=False)
    nbytes = w.crow_indices().nbytes + w.col_indices().nbytes + w.values().nbytes
    return Product(lambda x: (w @ x.t()).t(), nbytes)


def _op(kernel: str, layout: str, dtype: torch.dtype, weight: Tensor, tokens: int) -> Product:
    packed = pack(compress(weight.to(dtype), kernel), layout)
    op = ops.op_for(packed.stem, layout, "rivals")
    return Product(lambda x: op(x, *packed.tensors, None, *packed.shape), packed.nbytes)


RIVALS = (
    *(
        Rival(
            f"torch CSR {str(t)[6:]}", t, functools.partial(_csr, t), always, storage="csr",
        )
        for t in (torch.float32, torch.bfloat16, torch.float16)
    ),
    *(
        Rival(
            f"torch 2:4 {str(t)[6:]} ({layout})", t, functools.partial(_op, "2:4", layout, t),
            no_gpu(), storage="2:4", device="cuda",
        )
        for layout in ("cusparselt", "cutlass")
        for t in (torch.bfloat16, torch.float16)
    ),
    *(
        Rival(
            f"cuSPARSE {str(t)[6:]}", t, functools.partial(_op, "csr", "cusparse", t), no_gpu(),
            storage="csr", device="cuda",
        )
        for t in (torch.float32, torch.bfloat16, torch.float16)
    ),
)  # fmt: skip
