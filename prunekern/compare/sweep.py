"""One layer of the model against the number of tokens: each storage beside dense, and the limit.

The layer has the shape that holds most of the pruned layers' weights, and random weights pruned by
magnitude. Each contender owns so many copies of its weight, used in rotation, that no cache holds
them all: in a model, too, a layer's weight comes from memory, after all the others were read. At
each number of tokens the contenders of a dtype take turns. A time is the median over rounds, a
speed-up the median over rounds of dense time / own time.

No product can be faster than

    max(bytes of W, x and y / bandwidth, 2 M nnz / peak)

with bandwidth and peak measured here (`limits.py`), but for weights of integers, of which only the
bytes count: the limit of a storage's speed-up is the time of dense over that.
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekern import ops
from prunekern.compare.limits import Limits, measure_limits
from prunekern.compare.variants import (
    DENSE,
    DTYPES,
    REMOVED,
    TorchCSRLinear,
    Variant,
    build,
    variants_for,
    weight_bytes,
)
from prunekern.layouts import pack
from prunekern.nn import SparseLinear

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SPARSITIES = (0.5, 0.7, 0.9)
ROUNDS = (3, 41)  # at least and at most
CELL_SECONDS = 1.5  # of rounds, for one dtype and number of tokens
ROTATED_BYTES = 2**29  # of all contenders of a dtype together
MOST_COPIES = 512
_LAYER = "layer"


@dataclass(frozen=True)
class Contender:
    """One line of a plot.

    Attributes:
        variant: What it is.
        layout: The variant of the kernel that runs, or "" where torch does it.
        nbytes: Of the weight.
        kept: Weights that are not zero.
        integer: Whether they are stored as integers, which may be multiplied as such.
        copies: x -> y, each on a weight of its own.
    """

    variant: Variant
    layout: str
    nbytes: int
    kept: int
    integer: bool
    copies: list[Callable[[Tensor], Tensor]]


def commonest_shape(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape (N, K) that holds most of the weights, the first of equals."""
    counts = Counter(shapes)
    return max(counts, key=lambda shape: counts[shape] * shape[0] * shape[1])


def lines_for(patterns: Sequence[str], dtype: str) -> list[Variant]:
    """Dense, then each storage of the patterns: unstructured ones at each of `SPARSITIES`."""
    lines = {}
    for sparsity in SPARSITIES:
        for v in variants_for(patterns, sparsity, [dtype]):
            # Zeros that are stored and multiplied take the time of dense.
            if v.storage != REMOVED and (v.storage != DENSE or v.pattern == DENSE):
                lines.setdefault((v.pattern, v.storage, v.sparsity), v)
    return list(lines.values())


def measure_sweep(
    shape: tuple[int, int], patterns: Sequence[str], dtypes: Sequence[str], threads: int
) -> dict[str, Any]:
    """Times a layer of this shape; about half a minute for a small one.

    Args:
        shape: (N, K).
        patterns: As those of `compare`.
        dtypes: Keys of `DTYPES`.
        threads: Of torch.

    Returns:
        "shape", "tokens", "limits" (bytes_per_s, flops_per_s by dtype), "rotated_bytes" and
        "lines", each with what it is, "ms", "speedup", "limit_ms", "limit_speedup" (by tokens as
        strings, those of JSON), "bound" ("bytes" or "FLOPs"), "bytes" and "flops" of one product.
    """
    torch.set_num_threads(threads)
    limits = measure_limits({name: DTYPES[name] for name in dtypes})
    lines = []
    for dtype in dtypes:
        contenders = _contenders(shape, lines_for(patterns, dtype))
        lines += _measured(contenders, shape, dtype, limits)
    return {
        "shape": list(shape),
        "tokens": list(TOKENS),
        "limits": asdict(limits),
        "rotated_bytes": ROTATED_BYTES,
        "lines": lines,
    }


def _contenders(shape: tuple[int, int], variants: list[Variant]) -> list[Contender]:
    N, K = shape
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) / K**0.5
    share = ROTATED_BYTES // len(variants)
    contenders = []
    for variant in variants:
        linear = nn.Linear(K, N, bias=False, device="meta")
        own = weight.to(DTYPES[variant.dtype], copy=True)  # pruned in place
        linear.weight = nn.Parameter(own, requires_grad=False)
        model = nn.ModuleDict({_LAYER: linear})
        build(model, variant, [_LAYER])
        layer = model[_LAYER]
        nbytes = weight_bytes(layer)
        kept = N * K if variant.storage == DENSE else round(N * K * (1 - variant.sparsity))
        count = min(MOST_COPIES, max(2, share // nbytes))
        copies = _copies(layer, count)
        sparse = isinstance(layer, SparseLinear)
        integer = sparse and not layer.canonical().values.is_floating_point()
        layout = layer.layout if sparse else ""
        contenders.append(Contender(variant, layout, nbytes, kept, integer, copies))
    return contenders


def _copies(layer: nn.Module, count: int) -> list[Callable[[Tensor], Tensor]]:
    if isinstance(layer, TorchCSRLinear):  # deepcopy knows no sparse tensor
        copies = [copy.copy(layer) for _ in range(count)]
        for one in copies:
            one.csr = layer.csr.clone()
        return copies
    if not isinstance(layer, SparseLinear):
        return [copy.deepcopy(layer) for _ in range(count)]
    # deepcopy would compress and pack each of them anew.
    packed = pack(layer.canonical(), layer.layout)
    tensors = [tuple(t.clone() for t in packed.tensors) for _ in range(count)]
    return [functools.partial(ops.linear, packed=replace(packed, tensors=t)) for t in tensors]


@torch.inference_mode()
def _measured(
    contenders: list[Contender], shape: tuple[int, int], dtype: str, limits: Limits
) -> list[dict[str, Any]]:
    turns = [itertools.cycle(c.copies) for c in contenders]
    seconds = {}
    for tokens in TOKENS:
        x = torch.randn(tokens, shape[1]).to(DTYPES[dtype])
        seconds[tokens] = _rounds([lambda turn=turn, x=x: next(turn)(x) for turn in turns])
    return [
        _line(contender, shape, dtype, limits, {t: (s[0], s[i]) for t, s in seconds.items()})
        for i, contender in enumerate(contenders)
    ]


def _rounds(calls: list[Callable[[], Tensor]]) -> list[list[float]]:
    """Seconds of each call in each round; the first round warms up and does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + CELL_SECONDS
    for done in range(-1, ROUNDS[1]):
        if done >= ROUNDS[0] and time.perf_counter() > end:
            break
        for call, mine in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if done >= 0:
                mine.append(time.perf_counter() - start)
    return seconds


def _line(
    contender: Contender,
    shape: tuple[int, int],
    dtype: str,
    limits: Limits,
    seconds: dict[int, tuple[list[float], list[float]]],
) -> dict[str, Any]:
    variant = contender.variant
    element = DTYPES[dtype].itemsize
    line: dict[str, Any] = {
        "variant": variant.name,
        "pattern": variant.pattern,
        "storage": variant.storage,
        "sparsity": variant.sparsity,
        "dtype": dtype,
        "layout": contender.layout,
        "weight_bytes": contender.nbytes,
    }
    tables = ("ms", "speedup", "limit_ms", "limit_speedup", "bound", "bytes", "flops")
    line |= {table: {} for table in tables}
    for tokens, (dense, mine) in seconds.items():
        nbytes = contender.nbytes + tokens * sum(shape) * element
        flops = 2 * tokens * contender.kept
        # The peak of floats is none of integers: only their bytes limit those.
        limit = limits.seconds(nbytes, 0 if contender.integer else flops, dtype)
        cell = {
            "ms": statistics.median(mine) * 1e3,
            "speedup": statistics.median(d / m for d, m in zip(dense, mine, strict=True)),
            "limit_ms": limit * 1e3,
            "limit_speedup": statistics.median(dense) / limit,
            "bound": "bytes" if limit == nbytes / limits.bytes_per_s else "FLOPs",
            "bytes": nbytes,
            "flops": flops,
        }
        for table, value in cell.items():
            line[table][str(tokens)] = value
    return line
