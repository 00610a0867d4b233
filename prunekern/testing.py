"""Inputs, tolerances, bytes and FLOPs: what tests and benchmarks share."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekern import ops
from prunekern.formats import DTYPES, FORMATS
from prunekern.layouts import LAYOUTS, RIVALS, Packed, takes_dtype
from prunekern.pruning.masks import nm_mask

# (N, K) on and off every tile of every layout.
SHAPES = ((1, 1), (3, 5), (16, 64), (17, 67), (33, 130), (64, 256), (100, 301), (256, 512))
# M around every boundary between kernels: decode, panels, blocks of tokens.
TOKENS = (1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 33, 41, 64, 70, 130)


def random_weight(
    kernel: str,
    N: int,
    K: int,
    dtype: torch.dtype,
    density: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """A weight that the format takes: normal, scaled by K, zeros where it is pruned.

    Where the format rounds, it has been rounded to it, so that nothing more is lost: of each row
    to whole multiples of a power of two.

    Args:
        kernel: "2:4" and its kin (two of four kept), "csr" or "bitmask" (each with `density`).
        N: out_features.
        K: in_features.
        dtype: Of the result.
        density: Share of non-zeros; 2:4 has its own.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=generator) / K**0.5
    scores = torch.rand(N, K, generator=generator)
    cls = FORMATS[kernel]
    mask = nm_mask(scores, 2, 4) if cls.pattern == "2:4" else scores < density
    weight = weight.masked_fill(~mask, 0.0)
    if cls.bits:
        step = weight.abs().amax(1, keepdim=True) / (2 ** (cls.bits - 1) - 1)
        step = step.log2().ceil().exp2()
        weight = (weight / step).nan_to_num().round() * step + 0.0  # no -0.0
    return weight.to(dtype)


def uneven_weight(N: int, K: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A weight with rows of all lengths, in no order; the first third is empty."""
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight("csr", N, K, dtype, 1.0, seed)
    lengths = torch.randperm(N, generator=generator) * K // max(N - 1, 1)
    weight[torch.arange(K) >= lengths[:, None]] = 0
    weight[: N // 3] = 0
    return weight


def variants(device: str = "cpu") -> list[tuple[str, str, torch.dtype]]:
    """(stem, layout, dtype) of every op that runs on this CPU, or was built for GPUs ("cuda")."""
    return [
        (stem, layout, dtype)
        for stem, layouts in LAYOUTS.items()
        for layout in layouts + RIVALS.get(stem, ())
        for dtype in DTYPES
        if (stem, layout) in ops.available(device) and takes_dtype(layout, dtype)
    ]


def max_error(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """Largest deviation of y from the product in float64."""
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    return (y.double() - exact).abs().max().item()


def tolerance(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """Twice the error of torch's dense product in the same dtype, and what rounding alone may cost.

    The second term, half a unit in the last place of the largest result and one of the largest
    float32 sum, is for products whose dense result happens to round without error. At 16 bits a
    wrong weight of a long row can hide in it: see `whole_numbers`.
    """
    dense = torch.nn.functional.linear(x, weight, bias)
    terms = torch.nn.functional.linear(
        x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs()
    )
    rounding = torch.finfo(x.dtype).eps / 2 * dense.double().abs().max().item()
    sums = torch.finfo(torch.float32).eps * terms.max().item()
    return 2 * max_error(dense, x, weight, bias) + rounding + sums


def assert_close_to_float64(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, case: object = ""
) -> None:
    """Raises AssertionError unless y is x W^T + bias within `tolerance`; NaN never is."""
    error, allowed = max_error(y, x, weight, bias), tolerance(x, weight, bias)
    if not error <= allowed:
        raise AssertionError(f"{case}: error must be at most {allowed:.3g}, got {error:.3g}")


def rounded_to_bytes(x: Tensor) -> Tensor:
    """What the layouts of `ROUND_X` read of x, float64: multiples of 1/127 of a row's largest."""
    largest = x.float().abs().amax(-1, keepdim=True).clamp_min(2**-100)
    most = torch.full_like(largest, 127)  # `127 / largest` would be rounded twice
    return (x.float() * (most / largest)).round().double() * (largest / most).double()


def assert_close_to_rounded(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, case: object = ""
) -> None:
    """Raises AssertionError unless y is the product of `rounded_to_bytes(x)`, element by element.

    Sums of whole numbers are exact: half a unit of y is lost and a few of float32, nothing else.

    Args:
        y: What a kernel of `ROUND_X` gave.
        x: As it was given to it.
        weight: Whole numbers times scales, not rounded to 16 bits.
        bias: Or None.
        case: For the message.
    """
    x, weight = rounded_to_bytes(x), weight.double()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
    exact, terms = x @ weight.t() + bias, x.abs() @ weight.abs().t() + bias.abs()
    limits = torch.finfo(y.dtype)
    sums = 4 * torch.finfo(torch.float32).eps * terms
    allowed = limits.eps / 2 * exact.abs() + sums + limits.smallest_normal
    worst = ((y.double() - exact).abs() / allowed).max().item()
    if not worst <= 1:
        raise AssertionError(f"{case}: error must be at most what rounding costs, got {worst:.3g}x")


def whole_numbers(t: Tensor) -> Tensor:
    """The same zeros, all else one of -2, -1, 1, 2 by its sign and size, in the same dtype.

    Products and sums of these are exact in float32 up to K = 2^22, in any order, so that a kernel's
    result must equal the rounded float64 result to the bit: one wrong weight shows in any dtype.
    """
    return (t.sign() * (1 + (t.abs() > t.abs().median()).to(t.dtype))).to(t.dtype)


def weight_bytes(packed: Packed) -> int:
    """Bytes that one product reads of the weight."""
    return packed.nbytes


def dense_flops(M: int, shape: tuple[int, int]) -> int:
    """Floating point operations of the dense product: what "effective" rates are quoted in."""
    return 2 * M * shape[0] * shape[1]
