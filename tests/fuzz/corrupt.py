"""Corrupts canonical tensors at random; run under AddressSanitizer by tests/test_fuzz.py.

Each corruption is either refused by `validate` with a ValueError, or still valid; then every
variant packs it, runs it and agrees with the reference. Packed tensors of wrong sizes are refused
by the ops, not read.
Nothing may read out of bounds: the sanitizer stops the process if it does.
"""

import random
import sys

import torch

from prunekern import _C, ops, reference
from prunekern.formats import DTYPES, FORMATS, compress, from_tensors, validate
from prunekern.layouts import LAYOUTS, pack, takes_dtype
from prunekern.testing import random_weight

SHAPES = ((1, 1), (3, 5), (8, 32), (17, 67), (20, 130), (5, 300))


def corrupt(tensors, rng):
    """One damage to one tensor: bits, sizes, order or dtype."""
    name = rng.choice(sorted(tensors))
    t = tensors[name].clone()
    kind = rng.choice(
        ("bits", "bits", "bits", "cut", "grow", "shuffle", "dtype", "extreme", "swap")
    )
    if kind == "bits" and t.numel():
        raw = t.view(torch.uint8).flatten()
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(raw.numel())] ^= 1 << rng.randrange(8)
        t = raw.view(t.dtype).view(t.shape)
    elif kind == "cut":
        t = t[: rng.randint(0, max(0, t.shape[0] - 1))].clone()
    elif kind == "grow":
        t = torch.cat([t, t[:1]])
    elif kind == "shuffle" and t.dim() == 1:
        t = t[torch.randperm(t.numel())] if t.dtype != torch.uint16 else t.int().flip(0).to(t.dtype)
    elif kind == "dtype":
        t = t.to(rng.choice((torch.int8, torch.int32, torch.int64, torch.float32, torch.uint8)))
    elif kind == "extreme" and t.numel() and not t.is_floating_point():
        low, high = (0, 2**16 - 1) if t.dtype == torch.uint16 else (
            torch.iinfo(t.dtype).min, torch.iinfo(t.dtype).max)  # fmt: skip
        index = rng.randrange(t.numel())
        wide = t.to(torch.int64).flatten()
        wide[index] = rng.choice((low, high, -1 if low < 0 else high))
        t = wide.to(t.dtype).view(t.shape)
    elif kind == "swap" and t.dim() == 2:
        t = t.t().contiguous()
    return {**tensors, name: t}


def check_valid(canonical, weight_shape, x):
    """A corruption that is still a weight: all variants compute the same."""
    wanted = reference.linear(x, canonical)
    for layout in LAYOUTS[canonical.stem]:
        fits = takes_dtype(layout, canonical.dtype)
        if not fits or (canonical.stem, layout) not in ops.available():
            continue
        y = ops.linear(x, pack(canonical, layout))
        if canonical.bits:
            # A damaged scale may overflow where it meets the numbers and not where it meets sums.
            finite = y.isfinite() & wanted.isfinite()
            torch.testing.assert_close(y[finite], wanted[finite], atol=1e-1, rtol=1e-1)
            continue
        torch.testing.assert_close(y, wanted, atol=1e-1, rtol=1e-1, equal_nan=True)


def check_op_sizes(canonical, rng, x):
    """Packed tensors that do not fit the sizes given are refused, never read."""
    N, K = canonical.shape
    for layout in LAYOUTS[canonical.stem]:
        key = (canonical.stem, layout)
        fits = takes_dtype(layout, canonical.dtype)
        if layout == "reference" or not fits or key not in ops.available():
            continue
        tensors = list(pack(canonical, layout).tensors)
        i = rng.randrange(len(tensors))
        if tensors[i].shape[0] == 0:
            continue
        tensors[i] = tensors[i][:-1].clone()
        try:
            ops.OPS[key](x, *tensors, None, N, K)
        except RuntimeError:
            continue
        raise AssertionError(f"{key} took a tensor that is too short")


def main(count: int, seed: int) -> None:
    """Tries `count` corruptions and prints what became of them."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    refused = valid = 0
    for i in range(count):
        kernel = rng.choice(sorted(FORMATS))
        dtype = rng.choice(DTYPES)
        shape = rng.choice(SHAPES)
        canonical = compress(
            random_weight(kernel, *shape, dtype, rng.choice((0.1, 0.5, 1)), i), kernel
        )
        x = torch.randn(rng.choice((1, 3, 20, 50)), shape[1]).to(dtype)
        if i % 5 == 0:
            check_op_sizes(canonical, rng, x)
        damaged = from_tensors(kernel, corrupt(canonical.tensors(), rng), shape)
        try:
            validate(damaged, "layer")
        except ValueError:
            refused += 1
            continue
        valid += 1
        check_valid(damaged, shape, x.to(damaged.dtype))
    print(f"{count} corruptions: {refused} refused, {valid} still valid and computed right")
    print(f"sanitized: {_C.build_info()['sanitized']}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
