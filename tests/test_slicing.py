"""Rows of canonical weights: to the bit what the dense weight's rows compress to."""

import pytest
import torch

from prunekern import formats
from prunekern.formats import DTYPES, FORMATS
from prunekern.pruning.masks import nm_mask
from prunekern.slicing import concatenate_rows, slice_rows

KERNELS = sorted(FORMATS)
CUTS = [(0, 1), (0, 21), (5, 6), (7, 20), (20, 21)]


def weight(rows, K=70, dtype=torch.float32):
    w = torch.randn(rows, K)
    return w.masked_fill(~nm_mask(w.abs(), 2, 4), 0.0).to(dtype)


def same(a, b):
    ours, theirs = a.tensors(), b.tensors()
    assert (type(a), a.shape, ours.keys()) == (type(b), b.shape, theirs.keys())
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype and torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_a_weight_are_the_weight_of_rows(kernel, dtype):
    w = weight(21, dtype=dtype)
    w[3] = 0
    whole = formats.compress(w, kernel)
    for begin, end in CUTS:
        part = slice_rows(whole, begin, end)
        formats.validate(part)
        same(part, formats.compress(w[begin:end], kernel))
        # Its own memory: a file holds no more than the part.
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in part.tensors().values())


@pytest.mark.parametrize("kernel", KERNELS)
def test_parts_go_together_again(kernel):
    whole = formats.compress(weight(21), kernel)
    for cut in (1, 5, 20):
        parts = [slice_rows(whole, 0, cut), slice_rows(whole, cut, 21)]
        same(concatenate_rows(parts), whole)
    same(concatenate_rows([whole]), whole)


def test_what_does_not_fit_is_refused():
    a = formats.compress(weight(4), "2:4")
    for other, message in (
        (formats.compress(weight(4), "csr"), "kernel of all parts must be 2:4, got csr"),
        (formats.compress(weight(4, 72), "2:4"), "in_features of all parts must be 70, got 72"),
        (formats.compress(weight(4, dtype=torch.float16), "2:4"), "dtype of all parts must be"),
    ):
        with pytest.raises(ValueError, match=f"concatenate_rows: {message}"):
            concatenate_rows([a, other])
    fine, coarse = (formats.compress(weight(4, 128), "2:4-int4", size) for size in (32, 64))
    with pytest.raises(ValueError, match="group_size of all parts must be 32, got 64"):
        concatenate_rows([fine, coarse])
    with pytest.raises(ValueError, match="parts must be one or more"):
        concatenate_rows([])
    for begin, end in ((0, 0), (2, 1), (-1, 2), (0, 5)):
        with pytest.raises(ValueError, match=r"slice_rows: range must lie in 0\.\.4"):
            slice_rows(a, begin, end)
