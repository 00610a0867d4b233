"""torch's CSR product as the layout "cusparse": its function runs on a CPU in float32."""

import pytest
import torch
from conftest import bits

from prunekern import ops, rivals
from prunekern.formats import DTYPES, compress
from prunekern.layouts import LAYOUTS, RIVALS, Facts, layout_for, pack, unpack, why_not
from prunekern.testing import assert_close_to_float64, random_weight

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N, K", [(1, 1), (70, 33), (3, 70_000)])
def test_unpack_inverts_pack(N, K, dtype):
    c = compress(random_weight("csr", N, K, dtype, 0.2), "csr")
    packed = pack(c, "cusparse")
    assert [t.dtype for t in packed.tensors] == [dtype, torch.int32, torch.int32]
    again = unpack(packed)
    for name, tensor in c.tensors().items():
        assert torch.equal(bits(again.tensors()[name]), bits(tensor)), name


@pytest.fixture(scope="module")
def op():
    """The op as it is registered for GPUs, on the CPU and under another name."""
    library = torch.library.Library("prunekern_rivals_test", "FRAGMENT")
    library.define(f"csr_linear_cusparse{ops._SCHEMAS['csr']}")
    library.impl("csr_linear_cusparse", rivals.LINEARS["cusparse"], "CPU")
    torch.library.register_fake(
        "prunekern_rivals_test::csr_linear_cusparse", ops._fake_linear, lib=library
    )
    yield torch.ops.prunekern_rivals_test.csr_linear_cusparse.default
    library._destroy()


@pytest.mark.parametrize("shape", [(70,), (0, 70), (1, 70), (2, 5, 70)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_product(op, shape, has_bias):
    weight = random_weight("csr", 65, 70, torch.float32, 0.2)
    x, bias = torch.randn(shape), torch.randn(65) if has_bias else None
    tensors = pack(compress(weight, "csr"), "cusparse").tensors
    y = op(x, *tensors, bias, 65, 70)
    assert y.shape == (*shape[:-1], 65) and y.is_contiguous()
    if y.numel():
        assert_close_to_float64(y, x, weight, bias)


def test_schema_and_fake(op):
    tensors = pack(compress(random_weight("csr", 9, 7, torch.float32), "csr"), "cusparse").tensors
    torch.library.opcheck(
        op, (torch.randn(3, 7), *tensors, None, 9, 7), test_utils=("test_schema", "test_faketensor")
    )


def test_what_torch_cannot_do_is_said(monkeypatch):
    def refuse(*_):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
    tensors = pack(compress(torch.eye(3).half(), "csr"), "cusparse").tensors
    with pytest.raises(
        RuntimeError, match=r"cusparse: .* must take torch\.float16 on cpu, got: not"
    ):
        rivals.linear_cusparse(torch.ones(1, 3).half(), *tensors, None, 3, 3)


def test_it_is_taken_by_name_only():
    everything = frozenset((s, v) for s, vs in LAYOUTS.items() for v in vs + RIVALS.get(s, ()))
    facts = Facts("cuda", (9, 0), frozenset(), torch.float16, everything)
    assert why_not("csr", "cusparse", facts) == ""
    assert layout_for("csr", facts) == "simt"
    only = Facts("cuda", (9, 0), frozenset(), torch.float16, frozenset({("csr", "cusparse")}))
    assert layout_for("csr", only) == "reference"
