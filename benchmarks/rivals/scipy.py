"""scipy's CSR product: one thread, and float32, its smallest dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from rivals.rival import Product, Rival, no_package


def _csr(weight: Tensor, tokens: int) -> Product:
    from scipy.sparse import csr_array

    w = csr_array(weight.numpy())
    nbytes = w.data.nbytes + w.indices.nbytes + w.indptr.nbytes
    return Product(lambda x: torch.from_numpy(w @ x.numpy().T).t(), nbytes)


RIVALS = (
    Rival(
        "scipy CSR float32, one thread", torch.float32, _csr, no_package("scipy"), storage="csr",
        pool="none",
    ),
)  # fmt: skip
