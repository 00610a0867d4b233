import pytest
import torch
from conftest import bits

from prunekern.formats import DTYPES, FORMATS, Bitmask, compress, decompress, validate
from prunekern.slicing import concatenate_columns, concatenate_rows, slice_columns, slice_rows
from prunekern.testing import random_weight, uneven_weight

KERNELS = ("2:4", "csr", "bitmask")
CUTS = {  # (N, K): rows and columns where parts begin
    (1, 4): ((0,), (0,)),
    (7, 13): ((0, 3, 4), (0, 4, 12)),
    (33, 130): ((0, 1, 32), (0, 8, 64, 68)),
    (16, 64): ((0, 8), (0, 32)),
}


def same(a, b):
    assert a.shape == b.shape and type(a) is type(b)
    for name, tensor in a.tensors().items():
        assert tensor.dtype == b.tensors()[name].dtype
        assert torch.equal(bits(tensor), bits(b.tensors()[name])), name


def ranges(cuts, size):
    return list(zip(cuts, (*cuts[1:], size), strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_slices_are_those_of_the_dense_weight_and_concatenate_again(kernel, dtype):
    for (N, K), (rows, columns) in CUTS.items():
        weight = random_weight(kernel, N, K, dtype, seed=N)
        c = compress(weight, kernel)
        parts = [slice_rows(c, a, b) for a, b in ranges(rows, N)]
        for part, (a, b) in zip(parts, ranges(rows, N), strict=True):
            validate(part)
            assert torch.equal(decompress(part), weight[a:b])
        same(concatenate_rows(parts), c)
        parts = [slice_columns(c, a, b) for a, b in ranges(columns, K)]
        for part, (a, b) in zip(parts, ranges(columns, K), strict=True):
            validate(part)
            assert torch.equal(decompress(part), weight[:, a:b])
        same(concatenate_columns(parts), c)


@pytest.mark.parametrize("kernel", ("csr", "bitmask"))
def test_columns_are_cut_anywhere_where_there_are_no_groups(kernel):
    weight = uneven_weight(19, 37, torch.float32)
    c = compress(weight, kernel)
    parts = [slice_columns(c, a, b) for a, b in ((0, 1), (1, 18), (18, 37))]
    assert torch.equal(torch.cat([decompress(p) for p in parts], 1), weight)
    same(concatenate_columns(parts), c)


@pytest.mark.parametrize("kernel", ("2:4-int8", "2:4-int4"))
def test_rows_of_weights_with_scales(kernel):
    c = compress(random_weight("2:4", 9, 70, torch.float32), kernel)
    parts = [slice_rows(c, 0, 4), slice_rows(c, 4, 9)]
    for part in parts:
        validate(part)
    assert torch.equal(torch.cat([decompress(p) for p in parts]), decompress(c))
    same(concatenate_rows(parts), c)
    with pytest.raises(ValueError, match=f"must have no scales, got {kernel}; slice it by rows"):
        slice_columns(c, 0, 32)


def test_values_that_are_zero_keep_their_place():
    weight = random_weight("bitmask", 12, 40, torch.float32)
    for kernel in KERNELS:
        c = compress(random_weight(kernel, 12, 40, torch.float32), kernel)
        c = c.with_values(torch.where(torch.rand(c.values.shape) < 0.3, 0.0, c.values))
        same(concatenate_rows([slice_rows(c, 0, 5), slice_rows(c, 5, 12)]), c)
        same(concatenate_columns([slice_columns(c, 0, 20), slice_columns(c, 20, 40)]), c)
    assert isinstance(slice_rows(compress(weight, "bitmask"), 0, 1), Bitmask)


def test_a_slice_shares_no_memory():
    for kernel in KERNELS:
        c = compress(random_weight(kernel, 8, 16, torch.float32), kernel)
        before = decompress(c)
        for part in (slice_rows(c, 0, 4), slice_columns(c, 0, 8)):
            for tensor in part.tensors().values():
                tensor.zero_()
        assert torch.equal(decompress(c), before)


def test_index_types_become_small_again():
    wide = compress(random_weight("csr", 2, 65540, torch.float32, 0.01), "csr")
    assert wide.col_indices.dtype == torch.int32
    part = slice_columns(wide, 65000, 65540)
    assert part.col_indices.dtype == torch.uint16
    validate(part)
    rest = slice_columns(wide, 0, 65000)
    same(concatenate_columns([rest, part]), wide)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_ranges_and_parts_are_refused(kernel):
    c = compress(random_weight(kernel, 8, 16, torch.float32), kernel)
    for slicing, size in ((slice_rows, 8), (slice_columns, 16)):
        for begin, end in ((0, 0), (4, 2), (-4, 4), (0, size + 4)):
            with pytest.raises(ValueError, match=rf"range must lie in 0\.\.{size}.*got {begin}"):
                slicing(c, begin, end)
    with pytest.raises(ValueError, match="must be one or more, got none"):
        concatenate_rows([])
    other = compress(random_weight(kernel, 4, 12, torch.float32), kernel)
    with pytest.raises(ValueError, match="in_features of all parts must be 16, got 12"):
        concatenate_rows([c, other])
    with pytest.raises(ValueError, match="out_features of all parts must be 8, got 4"):
        concatenate_columns([c, other])
    with pytest.raises(ValueError, match=r"dtype of all parts must be torch.float32, got .*16"):
        concatenate_rows([c, c.to(dtype=torch.bfloat16)])
    strange = compress(
        random_weight("2:4", 8, 16, torch.float32), next(k for k in KERNELS if k != kernel)
    )
    with pytest.raises(ValueError, match="kernel of all parts must be"):
        concatenate_rows([c, strange])


def test_groups_of_24_can_not_be_cut():
    c = compress(random_weight("2:4", 8, 16, torch.float32), "2:4")
    with pytest.raises(ValueError, match="must be multiples of 4 for 2:4, got 2, 8"):
        slice_columns(c, 2, 8)
    ragged = compress(random_weight("2:4", 8, 6, torch.float32), "2:4")
    with pytest.raises(ValueError, match=r"must be multiples of 4 for 2:4, got 6"):
        concatenate_columns([ragged, c])
    assert set(KERNELS) <= set(FORMATS)


def test_groups_of_scales_must_be_alike():
    w = torch.zeros(4, 128)
    fine, coarse = (compress(w, "2:4-int4", size) for size in (32, 64))
    with pytest.raises(ValueError, match="group_size of all parts must be 32, got 64"):
        concatenate_rows([fine, coarse])
