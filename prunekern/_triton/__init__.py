"""The layout "triton": kernels in Triton, a file a format, for GPUs without a kernel of their own.

They run on NVIDIA's GPUs below compute capability 8.0 or without the CUDA build, and on AMD's; on
a CPU in Triton's interpreter, for tests. This file knows whether Triton is there and what the ops
share; plan.py chooses tiles, blocks.py is what kernels share; a format's file has `linear`, and
whatever else `OPS` names, under the schema of its op.

Each op is opaque to torch.compile, like those in C++ and under the same schema, fake and gradient.
`torch.library.triton_op` would show Inductor the kernel inside, which it cannot fuse with anything,
for a second set of all three; and the interpreter's kernels it refuses.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunekern.formats import DTYPES

# Stem -> ops, each a function of that name in the format's file.
OPS: dict[str, tuple[str, ...]] = {
    "sparse24": ("linear", "pack", "decompress", "compress"),
    "bitmask": ("linear",),
    "csr": ("linear",),
}
OLDEST = (3, 4)  # whose autotune keeps its results
# Read by Triton, once, when a kernel's file is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _why_absent() -> str:
    """Why there is no Triton to use, or "". Does not import it: that takes a tenth of a second."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    for distribution in ("triton", "triton-rocm", "pytorch-triton-rocm"):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(map(int, version.split("+")[0].split(".")[:2])) < OLDEST:
            return f"Triton must be {OLDEST[0]}.{OLDEST[1]} or newer, got {version}"
    return ""


WHY_ABSENT = _why_absent()


def function(stem: str, verb: str) -> Callable:
    """What op `<stem>_<verb>_triton` does; its file, and Triton, are imported by the first call."""

    def call(*args):
        module = importlib.import_module(f"prunekern._triton.{stem}")
        return getattr(module, verb)(*args)

    return call


def must(op: str, ok: bool, what: str, rule: str, got: object) -> None:
    """Raises RuntimeError in the words of the compiled ops unless ok."""
    if not ok:
        raise RuntimeError(f"prunekern::{op}: {what} must {rule}, got {got}")


def check_linear(
    op: str,
    x: Tensor,
    packed: Sequence[tuple[str, Tensor, torch.dtype | None, tuple[int, ...]]],
    bias: Tensor | None,
    N: int,
    K: int,
) -> None:
    """Checks the arguments of a linear op.

    Args:
        op: Its name, for the message.
        x: [..., K].
        packed: Name, tensor, dtype and shape of each part of the weight, values first; a dtype of
            None is that of the values.
        bias: [N] or None.
        N: out_features.
        K: in_features.

    Raises:
        RuntimeError: A wrong dtype, device or shape; the message says what was expected.
    """
    values = packed[0][1]
    must(op, 1 <= N < 2**31, "out_features", "be at least 1 and below 2^31", N)
    must(op, 1 <= K < 2**31, "in_features", "be at least 1 and below 2^31", K)
    must(op, values.dtype in DTYPES, "values", "be float32, bfloat16 or float16", values.dtype)
    # The weight's, unless that was left on the CPU.
    device = values.device if values.device.type != "cpu" else x.device
    must(op, x.device == device, "x", f"be on {device}", x.device)
    must(op, x.dtype in DTYPES, "x", "be float32, bfloat16 or float16", x.dtype)
    must(op, x.dtype == values.dtype, "x", f"have the weight's dtype {values.dtype}", x.dtype)
    must(op, 1 <= x.dim() <= 16, "x", "have 1 to 16 dimensions", x.dim())
    must(op, x.shape[-1] == K, "the last dimension of x", f"be in_features = {K}", list(x.shape))
    for name, tensor, dtype, shape in packed:
        dtype = dtype or values.dtype
        must(op, tensor.device == device, name, f"be on {device}", tensor.device)
        must(op, tensor.dtype == dtype, name, f"be {dtype}", tensor.dtype)
        must(
            op,
            tensor.shape == shape,
            name,
            f"have the shape {list(shape)}; pack the weight for this op and give its "
            "out_features and in_features",
            list(tensor.shape),
        )
        must(op, tensor.is_contiguous(), name, "be contiguous", f"strides {tensor.stride()}")
    if bias is not None:
        must(op, bias.dtype == x.dtype, "bias", f"be {x.dtype}", bias.dtype)
        must(op, bias.device == device, "bias", f"be on {device}", bias.device)
        must(op, bias.shape == (N,), "bias", f"have the shape [{N}]", list(bias.shape))
