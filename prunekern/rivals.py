"""cuSPARSELt, CUTLASS and cuSPARSE through torch: more variants on a GPU, to compare with.

The first two are for 2:4, the last for CSR. They are taken only by name (`layout="cusparselt"`),
never by `layout_for`, and exist where the installed torch has them. Those of 2:4 want shapes in
steps of their own, so weights are padded when packed and tokens, up to a multiple of 8, at each
call.

    cusparselt   values   what torch._cslt_compress returns: kept values, then metadata
                 meta     int64 on the CPU: the algorithm for each of SEARCHED_TOKENS
    cutlass      values   [N', K' / 2]
                 meta     int16 [N', K' / 16], in CUTLASS's order
    cusparse     values   canonical
                 col_indices, crow_indices   int32, int64 from 2^31 kept weights on

Unpacking 2:4 gives the same dense weight, not the same spare positions: where a group keeps fewer
than two weights, which zero is stored beside them is chosen anew, and a stored -0.0 may become
+0.0.
"""

from __future__ import annotations

import bisect
import functools

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

# Layout -> rows and columns that the weight is padded to a multiple of.
WEIGHT_MULTIPLES = {"cusparselt": (16, 16), "cutlass": (32, 64)}
TOKEN_MULTIPLE = 8
# cuSPARSELt's algorithm is searched for these numbers of tokens; a call takes that of the next.
SEARCHED_TOKENS = (8, 64, 512, 4096)


def installed() -> frozenset[str]:
    """Those that this torch has."""
    if torch.version.cuda is None:
        return frozenset()
    found = {
        "cusparselt": torch.backends.cusparselt.is_available(),
        "cutlass": hasattr(torch, "_sparse_semi_structured_linear"),
        "cusparse": True,  # a part of torch
    }
    return frozenset(name for name, there in found.items() if there)


def pack(weight: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """(values, meta) of a dense weight that is 2:4; for cusparselt on a GPU only."""
    N, K = weight.shape
    rows, columns = WEIGHT_MULTIPLES[layout]
    padded = pad(weight, (0, -K % columns, 0, -N % rows)).contiguous()
    if layout == "cutlass":
        return sparse_semi_structured_from_dense_cutlass(padded)
    values = torch._cslt_compress(padded)
    algorithms = [
        torch._cslt_sparse_mm_search(
            values, padded.new_zeros(tokens, padded.shape[1]).t(), transpose_result=True
        )
        for tokens in SEARCHED_TOKENS
    ]
    return values, torch.tensor(algorithms)


def unpack(values: Tensor, meta: Tensor, layout: str, shape: tuple[int, int]) -> Tensor:
    """The dense weight that was packed.

    What cuSPARSELt holds is its own secret, so it is asked for the weight's product with the
    identity: exact for finite weights, as each output is one weight and zeros. Takes K x K elements
    for a moment.
    """
    N, K = shape
    if layout == "cutlass":
        return sparse_semi_structured_to_dense_cutlass(values, meta)[:N, :K].contiguous()
    identity = torch.eye(K, dtype=values.dtype, device=values.device)
    return linear("cusparselt", identity, values, meta, None, N, K).t().contiguous()


def linear(
    layout: str,
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """See `prunekern.reference.linear`; the op of one layout is a partial of this."""
    rows = x.reshape(-1, x.shape[-1])
    M, K = rows.shape
    if M == 0:
        return x.new_empty((*x.shape[:-1], out_features))
    row_multiple, column_multiple = WEIGHT_MULTIPLES[layout]
    rows = pad(rows, (0, -K % column_multiple, 0, -M % TOKEN_MULTIPLE))
    if bias is not None:
        bias = pad(bias, (0, -out_features % row_multiple))
    if layout == "cutlass":
        y = torch._sparse_semi_structured_linear(rows, values, meta, bias=bias)
    else:
        searched = min(bisect.bisect_left(SEARCHED_TOKENS, M), len(SEARCHED_TOKENS) - 1)
        y = torch._cslt_sparse_mm(
            values, rows.t(), bias=bias, transpose_result=True, alg_id=int(meta[searched])
        )
    return y[:M, :out_features].reshape(*x.shape[:-1], out_features).contiguous()


def linear_cusparse(
    x: Tensor,
    values: Tensor,
    col_indices: Tensor,
    crow_indices: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """See `prunekern.reference.linear`.

    Raises:
        RuntimeError: torch has no such product for this dtype on this device.
    """
    rows = x.reshape(-1, in_features)
    if len(rows) == 0:
        return x.new_empty((*x.shape[:-1], out_features))
    shape = (out_features, in_features)
    weight = torch.sparse_csr_tensor(
        crow_indices, col_indices, values, shape, check_invariants=False
    )
    try:
        if bias is None:
            y = weight @ rows.t()
        else:
            y = torch.addmm(bias.unsqueeze(1).expand(-1, len(rows)), weight, rows.t())
    except RuntimeError as error:
        raise RuntimeError(
            f"csr_linear_cusparse: torch's CSR product must take {values.dtype} on "
            f"{values.device}, got: {error}"
        ) from error
    return y.t().reshape(*x.shape[:-1], out_features).contiguous()


# The products by layout.
LINEARS = {
    **{layout: functools.partial(linear, layout) for layout in WEIGHT_MULTIPLES},
    "cusparse": linear_cusparse,
}
