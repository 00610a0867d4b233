import pytest
import torch

from prunekern import ops, reference
from prunekern.formats import DTYPES, FORMATS, compress, decompress
from prunekern.layouts import pack
from prunekern.testing import assert_close_to_float64, random_weight, whole_numbers

KERNELS = sorted(FORMATS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kernel", KERNELS)
def test_reference_is_the_dense_product(kernel, dtype):
    for n, k in ((1, 1), (3, 5), (17, 67), (33, 130)):
        weight = random_weight(kernel, n, k, dtype, seed=n)
        c = compress(weight, kernel)
        for bias in (None, torch.randn(n).to(dtype)):
            x = torch.randn(2, 3, k).to(dtype)
            y = reference.linear(x, c, bias)
            assert y.shape == (2, 3, n) and y.dtype == dtype
            assert_close_to_float64(y, x, weight, bias, (n, k))
            whole = whole_numbers(weight)
            x = whole_numbers(x)
            exact = (x.double() @ whole.double().t()).to(dtype)
            assert torch.equal(reference.linear(x, compress(whole, kernel)), exact)


@pytest.mark.parametrize("kernel", KERNELS)
def test_op_is_the_function(kernel):
    c = compress(random_weight(kernel, 20, 36, torch.bfloat16), kernel)
    packed = pack(c, "reference")
    x, bias = torch.randn(4, 36).bfloat16(), torch.randn(20).bfloat16()
    assert torch.equal(ops.linear(x, packed, bias), reference.linear(x, c, bias))
    assert torch.equal(reference.linear(x[:0], c), torch.empty(0, 20, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(3, 35), None, r"last dimension of x must be in_features = 36, got \[3, 35\]"),
        (torch.zeros(3, 36).half(), None, "x must have the weight's dtype torch.float32, got .*16"),
        (torch.zeros(3, 36).long(), None, "x must be float32, .* got torch.int64"),
        (torch.tensor(1.0), None, "x must have at least 1 dimension, got 0"),
        (torch.zeros(3, 36, device="meta"), None, "x must be on cpu as the weight is, got meta"),
        (torch.zeros(3, 36), torch.zeros(19), r"bias must have the shape \[20\], got \[19\]"),
        (torch.zeros(3, 36), torch.zeros(1, 20), r"bias must have the shape \[20\], got \[1, 20\]"),
        (torch.zeros(3, 36), torch.zeros(20).half(), "bias must be torch.float32, got .*float16"),
        (torch.zeros(3, 36), torch.zeros(20, device="meta"), "bias must be on cpu, got meta"),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_arguments_are_named(kernel, x, bias, message):
    c = compress(random_weight(kernel, 20, 36, torch.float32), kernel)
    with pytest.raises(RuntimeError, match=f"^prunekern::{c.stem}_linear_reference: .*{message}"):
        reference.linear(x, c, bias)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_those_of_the_formula(kernel):
    weight = random_weight(kernel, 6, 9, torch.float32)
    packed = pack(compress(weight, kernel), "reference")
    x = torch.randn(4, 9, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    ops.linear(x, packed, bias).square().sum().backward()
    y = x.detach() @ decompress(compress(weight, kernel)).t() + bias.detach()
    torch.testing.assert_close(x.grad, 2 * y @ weight)
    torch.testing.assert_close(bias.grad, 2 * y.sum(0))
