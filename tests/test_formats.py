import dataclasses

import pytest
import torch
from conftest import bits
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekern.formats import (
    DTYPES,
    FORMATS,
    Sparse24,
    compress,
    decompress,
    from_tensors,
    nbytes,
    validate,
)
from prunekern.testing import random_weight

# Keep any bits of a weight; the others round.
EXACT = sorted(kernel for kernel, cls in FORMATS.items() if not cls.bits)
SPECIAL = [float("nan"), float("inf"), -float("inf"), -0.0, 1e-30, -1.5]

weights = st.builds(
    lambda n, k, dtype, density, seed, special, kernel: (
        kernel,
        _with_specials(
            random_weight(kernel, n, k, dtype, density, seed), special and kernel in EXACT, seed
        ),
    ),
    n=st.integers(1, 40),
    k=st.integers(1, 150),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    seed=st.integers(0, 99),
    special=st.booleans(),
    kernel=st.sampled_from(sorted(FORMATS)),
)


def _with_specials(weight, special, seed):
    if not special:
        return weight
    flat = weight.flatten().clone()
    kept = flat.nonzero().flatten()
    for i, value in enumerate(SPECIAL[: len(kept)]):
        flat[kept[(i * 7 + seed) % len(kept)]] = value
    return flat.view_as(weight)


@settings(max_examples=300, deadline=None)
@given(weights)
def test_round_trip_is_exact_to_the_bit(case):
    kernel, weight = case
    canonical = compress(weight, kernel)
    validate(canonical)
    again = decompress(canonical)
    assert again.dtype == weight.dtype
    assert torch.equal(bits(again), bits(weight))
    rebuilt = from_tensors(kernel, canonical.tensors(), canonical.shape)
    assert torch.equal(bits(decompress(rebuilt)), bits(weight))


def test_nan_payload_survives():
    payload = torch.tensor([[0x7FC00123, 0, -0x3FFEDD, 0]], dtype=torch.int32).view(torch.float32)
    for kernel in EXACT:
        assert torch.equal(
            decompress(compress(payload, kernel)).view(torch.int32), payload.view(torch.int32)
        )


def test_negative_zero_of_24_stays_only_where_a_slot_is_free():
    kept = torch.tensor([[0.0, 0, -0.0, 5], [0, -0.0, 0, -0.0]])
    c = compress(kept, "2:4")
    assert torch.equal(bits(decompress(c)), bits(kept))
    assert c.meta.tolist() == [[0b0100_1110], [0b0100_1101]]  # positions (2,3) and (1,3)
    full = compress(torch.tensor([[-0.0, 4, 0, 5]]), "2:4")
    assert torch.equal(bits(decompress(full)), bits(torch.tensor([[0.0, 4, 0, 5]])))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_denormals_count_as_weights_where_torch_flushes_them(dtype):
    tiny = torch.ones(1, dtype=torch.int32 if dtype == torch.float32 else torch.int16)
    two = torch.tensor([[0.0, 1, 0, 0]], dtype=dtype)
    two[0, 0] = tiny.view(dtype)[0]
    three = two.clone()
    three[0, 2] = 2
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU can not flush denormals")
    try:
        assert torch.equal(bits(decompress(compress(two, "2:4"))), bits(two))
        with pytest.raises(ValueError, match="1 of 1 groups"):
            compress(three, "2:4")
    finally:
        torch.set_flush_denormal(False)


def test_meta_of_a_known_weight():
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 3, 4, 0, 5, 0, 0]])
    c = compress(weight, "2:4")
    assert c.values.tolist() == [[1, 2, 3, 4, 0, 5]]
    # positions (0,3), (2,3), (0,1): the free slot takes the lowest free index
    assert c.meta.tolist() == [[0b1110_1100, 0b0100_0100]]


def test_bitmask_of_a_known_weight():
    c = compress(torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 0, 0, 3]]), "bitmask")
    assert c.bitmask.tolist() == [[0b101, 0b10]]
    assert c.values.tolist() == [1, 2, 3]


def test_csr_takes_the_smallest_index_types():
    narrow = compress(torch.eye(3, 65536), "csr")
    wide = compress(torch.eye(3, 65537), "csr")
    assert narrow.col_indices.dtype == torch.uint16
    assert wide.col_indices.dtype == torch.int32
    assert narrow.crow_indices.dtype == torch.int32
    assert nbytes(narrow) == 3 * 4 + 3 * 2 + 4 * 4


def test_sizes_are_those_of_the_formats():
    weight = random_weight("2:4", 64, 128, torch.bfloat16)
    assert nbytes(compress(weight, "2:4")) == 64 * 128 * 1.125
    assert nbytes(compress(weight, "bitmask")) == 64 * 128 * 1.125


def test_weight_that_is_not_24_is_refused_with_count_and_place():
    weight = torch.zeros(5, 12)
    weight[3, 4:8] = 1
    weight[4, :3] = 1
    with pytest.raises(ValueError, match=r"2 of 15 groups .* row 3, columns 4 to 7"):
        compress(weight, "2:4")
    weight[3, 4:8] = torch.tensor([float("nan"), float("nan"), float("nan"), 0])
    with pytest.raises(ValueError, match="2 of 15"):
        compress(weight, "2:4")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3), r"non-empty matrix .* \[3\]"),
        (torch.zeros(0, 4), "non-empty matrix"),
        (torch.zeros(2, 2, dtype=torch.float64), "float32, bfloat16 or float16, got torch.float64"),
        (torch.zeros(2, 2, dtype=torch.int8), "got torch.int8"),
        (torch.zeros(2, 2).to_sparse_csr(), "must be dense"),
        (torch.zeros(2, 2, device="meta"), "meta tensor"),
        ([[1.0]], "must be a tensor, got list"),
    ],
)
@pytest.mark.parametrize("kernel", sorted(FORMATS))
def test_bad_weights_are_refused(weight, message, kernel):
    with pytest.raises(ValueError, match=message):
        compress(weight, kernel)


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="one of 2:4, 2:4-int8, 2:4-int4, csr, bitmask, got '4:2'"):
        compress(torch.zeros(2, 4), "4:2")


def test_non_contiguous_and_gradient_weights_compress():
    weight = random_weight("2:4-int4", 24, 16, torch.float32)
    turned = weight.t().contiguous().t().requires_grad_()
    for kernel in FORMATS:
        c = compress(turned, kernel)
        assert not c.values.requires_grad
        assert torch.equal(decompress(c), weight)


def _damaged(kernel, name, change):
    c = compress(random_weight(kernel, 6, 13, torch.float32, seed=3), kernel)
    tensors = {k: t.clone() for k, t in c.tensors().items()}
    tensors[name] = change(tensors[name])
    return dataclasses.replace(c, **tensors)


def _set(index, value):
    def change(t):
        t[index] = value
        return t

    return change


@pytest.mark.parametrize(
    ("kernel", "name", "change", "message"),
    [
        ("2:4", "meta", _set((2, 1), 0x00), "ascending order a group, got 2 bad .* row 2, group 2"),
        ("2:4", "meta", _set((1, 0), 0x46), "row 1, group 0: 0b0110"),
        ("2:4", "meta", lambda t: t[:, :1].clone(), r"shape \[6, 2\], got \[6, 1\]"),
        ("2:4", "meta", lambda t: t.to(torch.int32), "be torch.uint8, got torch.int32"),
        ("2:4", "values", lambda t: t.double(), "float32, bfloat16 or float16"),
        ("2:4", "values", _set((0, -1), 7.0), "zero beyond the last input 12"),
        ("2:4", "values", lambda t: t.t().contiguous().t(), "contiguous"),
        ("2:4-int8", "values", _set((2, 3), -128), "lie in -127..127, got -128 in 1 places"),
        ("2:4-int8", "values", _set((0, -1), 7), "zero beyond the last input 12"),
        ("2:4-int8", "values", lambda t: t.to(torch.int32), "be torch.int8"),
        ("2:4-int8", "meta", _set((1, 0), 0x46), "row 1, group 0: 0b0110"),
        ("2:4-int8", "scales", _set((1, 0), float("nan")), "finite, got 1 NaN or infinite"),
        ("2:4-int8", "scales", lambda t: t.double(), "float32, bfloat16 or float16"),
        ("2:4-int8", "scales", lambda t: t.repeat(1, 2), r"be ceil\(13 / group size\) .* got 2"),
        ("2:4-int8", "scales", lambda t: t[:, :0], "got 0"),
        ("2:4-int8", "scales", lambda t: t[:4].clone(), r"shape \[6, 1\], got \[4, 1\]"),
        ("2:4-int8", "scales", lambda t: t.flatten(), "have 2 dimensions, got 1"),
        ("2:4-int4", "values", _set((0, -1), 0x70), "zero beyond the last input 12"),
        ("2:4-int4", "values", lambda t: t.view(torch.int8), "be torch.uint8, got torch.int8"),
        ("2:4-int4", "values", lambda t: t[:, :3].clone(), r"shape \[6, 4\], got \[6, 3\]"),
        ("csr", "col_indices", lambda t: (t.int() + 9).to(torch.uint16), "lie in 0..12"),
        ("csr", "col_indices", lambda t: t.int().flip(0).to(torch.uint16), "ascend within a row"),
        ("csr", "col_indices", lambda t: t.to(torch.int64), "be torch.uint16"),
        ("csr", "crow_indices", _set(0, 1), "start with 0, got 1"),
        ("csr", "crow_indices", _set(-1, 2), "end with nnz"),
        ("csr", "crow_indices", _set(2, 1000), "never descend"),
        ("csr", "values", lambda t: t[:-1].clone(), "col_indices must have the shape .36"),
        ("bitmask", "bitmask", _set((0, 0), 0xFF), "as many bits set as there are values"),
        ("bitmask", "bitmask", _set((4, 1), 0xFF), "zero beyond column 12"),
        ("bitmask", "values", lambda t: t[:-2].clone(), "bitmask must have as many bits set"),
        ("bitmask", "values", lambda t: t.view(1, -1), "have the shape"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(kernel, name, change, message):
    with pytest.raises(ValueError, match=f"^layer7: (?:{name} must .*)?{message}"):
        validate(_damaged(kernel, name, change), "layer7")


def test_padding_nibble_must_be_the_canonical_one():
    c = compress(torch.ones(1, 2), "2:4")
    meta = c.meta.clone()
    meta[0, 0] = 0x84
    with pytest.raises(ValueError, match="unused nibble"):
        validate(Sparse24(values=c.values, meta=meta, shape=c.shape))


def test_what_is_no_canonical_tensor_is_refused():
    c = compress(torch.ones(2, 2), "csr")
    with pytest.raises(ValueError, match=r"layer7: weight must be .*CSR.*, got Tensor"):
        validate(torch.ones(2, 2), "layer7")
    with pytest.raises(ValueError, match="layer7: col_indices must be a tensor, got list"):
        validate(dataclasses.replace(c, col_indices=[0, 1]), "layer7")
    with pytest.raises(ValueError, match=r"layer7: crow_indices must be on cpu .* got meta"):
        validate(dataclasses.replace(c, crow_indices=c.crow_indices.to("meta")), "layer7")
    with pytest.raises(ValueError, match="layer7: values must hold data, got a meta tensor"):
        validate(c.to("meta"), "layer7")


def test_shape_and_tensor_names_are_checked():
    c = compress(torch.ones(2, 2), "csr")
    with pytest.raises(ValueError, match="two positive whole numbers"):
        validate(dataclasses.replace(c, shape=(0, 2)))
    with pytest.raises(ValueError, match=r"must be .*values.*, got .*bogus"):
        from_tensors("csr", {"bogus": c.values}, (2, 2))


def test_formats_move_and_convert():
    for kernel, cls in FORMATS.items():
        c = compress(random_weight(kernel, 8, 16, torch.float32), kernel)
        half = c.to(dtype=torch.bfloat16)
        assert isinstance(half, cls)
        assert torch.equal(decompress(half), decompress(c).bfloat16())
