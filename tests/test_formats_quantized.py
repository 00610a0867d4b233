"""2:4 rounded to int8 and int4: what rounding does, and that it does no worse than it must."""

import pytest
import torch

from prunekern.formats import (
    DTYPES,
    FORMATS,
    QuantizedSparse24,
    compress,
    decompress,
    dequantize,
    from_whole,
    group_size_of,
    nbytes,
    validate,
    whole_numbers_of,
)
from prunekern.testing import random_weight

KERNELS = sorted(k for k, cls in FORMATS.items() if cls.bits)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
GROUPS = (32, 64, 128, -1)


def _error(weight, c):
    """Share of the sum of squares that rounding changed."""
    weight = weight.double()
    return ((dequantize(c).double() - weight).square().sum() / weight.square().sum()).item()


@every_kernel
@pytest.mark.parametrize("group_size", GROUPS)
def test_numbers_and_scales_make_the_weight(kernel, group_size):
    N, K = 9, 210
    weight = random_weight("2:4", N, K, torch.float32)
    c = compress(weight, kernel, group_size)
    validate(c)
    size = K if group_size == -1 else group_size
    assert list(c.scales.shape) == [N, -(-K // size)]
    numbers = whole_numbers_of(c)
    plain = compress(weight, "2:4")
    assert torch.equal(c.meta, plain.meta)
    dense = torch.zeros(N, K, dtype=torch.float64)
    for n in range(N):
        for j, number in enumerate(numbers[n].tolist()):
            nibble = int(c.meta[n, j // 4]) >> 4 * (j // 2 % 2)
            k = j // 2 * 4 + (nibble >> 2 * (j % 2) & 3)
            if k < K:
                dense[n, k] = number * c.scales[n, k // size].double()
    assert torch.equal(dequantize(c), dense.float())
    assert torch.equal(decompress(c), dense.float())
    again = from_whole(type(c), numbers, c.meta, c.scales, c.shape)
    assert torch.equal(again.values, c.values)


@every_dtype
@every_kernel
def test_each_weight_takes_the_nearest_number_of_its_scale(kernel, dtype):
    weight = random_weight("2:4", 30, 500, dtype)
    for group_size in GROUPS:
        c = compress(weight, kernel, group_size)
        numbers = whole_numbers_of(c).double()
        kept = compress(weight, "2:4").values.double()
        size = 500 if group_size == -1 else group_size
        scales = c.scales.double().repeat_interleave(size // 2, 1)[:, : kept.shape[1]]
        low, high = (-127, 127) if c.bits == 8 else (-8, 7)
        assert numbers.min() >= low and numbers.max() <= high
        inside = (kept / scales > low) & (kept / scales < high)
        wrong = (kept - numbers * scales).abs() > 0.501 * scales.abs()
        assert not (wrong & inside).any()


@every_dtype
@every_kernel
def test_whole_multiples_of_a_power_of_two_are_kept_to_the_bit(kernel, dtype):
    weight = random_weight(kernel, 20, 300, dtype)
    weight[3] = 0
    weight[5, 4:] = 0
    for group_size in GROUPS:
        assert torch.equal(decompress(compress(weight, kernel, group_size)), weight)


# The best of 800 scales a group, in float64; of many steps of int8 some fit a group by luck.
@every_kernel
@pytest.mark.parametrize("group_size", GROUPS)
def test_scales_are_nearly_the_best(kernel, group_size):
    weight = random_weight("2:4", 16, 512, torch.float32)
    c = compress(weight, kernel, group_size)
    size = (512 if group_size == -1 else group_size) // 2
    kept = compress(weight, "2:4").values.double().view(-1, size)
    low, high = (-127, 127) if c.bits == 8 else (-8, 7)
    best = torch.full((len(kept),), torch.inf, dtype=torch.float64)
    largest = kept.abs().amax(1, keepdim=True)
    for share in torch.linspace(0.4, 1.05, 400).tolist():
        for sign in (1, -1):
            scale = sign * share * largest / high
            rounded = (kept / scale).round().clamp(low, high) * scale
            best = torch.minimum(best, (kept - rounded).square().sum(1))
    optimum = (best.sum() / kept.square().sum()).item()
    assert _error(weight, c) <= (1.1 if c.bits == 4 else 1.4) * optimum
    rough = (kept / (largest / high)).round().clamp(low, high) * (largest / high)
    if c.bits == 4:
        absmax = ((kept - rough).square().sum() / kept.square().sum()).item()
        assert _error(weight, c) < 0.95 * absmax


@every_dtype
def test_rounding_costs_what_its_bits_say(dtype):
    weight = random_weight("2:4", 64, 1024, dtype)
    errors = {k: _error(weight, compress(weight, k)) ** 0.5 for k in KERNELS}
    assert errors["2:4-int8"] < 0.01
    assert 0.05 < errors["2:4-int4"] < 0.12


@every_dtype
@every_kernel
def test_extreme_weights_round_without_overflow(kernel, dtype):
    largest = torch.finfo(dtype).max / 2
    tiny = torch.finfo(dtype).smallest_normal
    for number in (largest, tiny, -largest):
        weight = torch.zeros(3, 40, dtype=dtype)
        weight[1, 5], weight[1, 6], weight[2, 39] = number, -number / 2, number / 4
        c = compress(weight, kernel)
        validate(c)
        close = 0.1 if number != tiny or dtype == torch.bfloat16 else 1.0
        assert _error(weight, c) <= close, number
        assert torch.isfinite(decompress(c)).all()


@every_kernel
def test_zeros_stay_positive_zeros(kernel):
    weight = torch.zeros(2, 64)
    weight[0, 0], weight[0, 5] = -1, 1e-9  # rounds to 0 under a negative scale, too
    for group_size in GROUPS:
        dense = decompress(compress(weight, kernel, group_size))
        assert not torch.signbit(dense[dense == 0]).any()


def test_bytes_a_weight():
    weight = random_weight("2:4", 64, 1024, torch.bfloat16)
    assert nbytes(compress(weight, "2:4-int8")) == 64 * (1024 * 0.625 + 2)
    assert nbytes(compress(weight, "2:4-int4")) == 64 * 1024 * (0.375 + 2 / 64)
    assert nbytes(compress(weight, "2:4-int4", 128)) == 64 * 1024 * (0.375 + 2 / 128)


def test_sizes_tell_the_group_size():
    for K in (1, 31, 32, 33, 64, 65, 100, 127, 576, 1536, 11008):
        group = 32
        while group < 2 * K:
            assert group_size_of(K, -(-K // group)) == min(
                group, max(32, 1 << (K - 1).bit_length())
            )
            group *= 2
    for K, scales in ((32, 2), (100, 3), (128, 3), (64, 0)):
        with pytest.raises(ValueError, match="group size a power of two"):
            group_size_of(K, scales)


@every_kernel
def test_what_can_not_be_rounded_is_refused(kernel):
    weight = random_weight("2:4", 8, 64, torch.float32)
    for number in (float("nan"), float("inf")):
        weight[weight != 0] = number
        with pytest.raises(ValueError, match=rf"compress {kernel}: .* finite, got \d+ NaN"):
            compress(weight, kernel)
    for group_size in (0, 16, 48, 33, 64.0, "64", True, -2):
        with pytest.raises(ValueError, match="group_size must be a power of two from 32 on, or -1"):
            compress(torch.zeros(4, 64), kernel, group_size)
    with pytest.raises(ValueError, match="group_size must be left out for 2:4, got 64"):
        compress(torch.zeros(4, 64), "2:4", 64)
    with pytest.raises(ValueError, match="values must stay as they were rounded"):
        compress(torch.zeros(4, 64), kernel).with_values(torch.ones(4, 32))


@every_kernel
def test_scales_convert_and_numbers_stay(kernel):
    c = compress(random_weight(kernel, 8, 64, torch.float32), kernel)
    half = c.to("cpu", torch.bfloat16)
    assert half.dtype == half.scales.dtype == torch.bfloat16
    assert torch.equal(half.values, c.values)
    assert isinstance(half, QuantizedSparse24)
