"""Triton's kernels in its interpreter, on CPU tensors; test_triton.py starts it."""

import gpu_checks
import pytest
import torch
from conftest import bits

import prunekern
from prunekern import _triton, ops
from prunekern.formats import DTYPES, compress, decompress
from prunekern.layouts import pack_reference
from prunekern.pruning.masks import nm_mask
from prunekern.testing import (
    SHAPES,
    assert_close_to_float64,
    random_weight,
    uneven_weight,
    whole_numbers,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
KERNELS = {"sparse24": "2:4", "bitmask": "bitmask", "csr": "csr"}
every_format = pytest.mark.parametrize("stem", _triton.OPS)


def test_triton_is_here_only_by_its_interpreter():
    assert _triton.INTERPRETED
    for stem in _triton.OPS:
        assert (stem, "triton") in ops.available()
        cpu = torch.device("cpu")
        assert ops.default_layout(stem, cpu, torch.float32) != "triton"


@every_format
@every_dtype
def test_products_on_and_off_the_tile(stem, dtype):
    for case, (N, K) in enumerate((*SHAPES, (70, 1000))):
        weight = random_weight(KERNELS[stem], N, K, dtype, seed=case)
        packed = pack_reference(compress(weight, KERNELS[stem]), "triton")
        # The big shapes are for the tiles, not for the tokens: programs run one after the other.
        for M in (5,) if N * K > 50000 else ((1, 17), (8, 33), (9, 70))[case % 3]:
            x = torch.randn(M, K).to(dtype)
            bias = torch.randn(N).to(dtype) if case % 2 else None
            y = ops.linear(x, packed, bias)
            assert_close_to_float64(y, x, weight, bias, (N, K, M))


@every_format
@every_dtype
def test_whole_numbers_are_exact(stem, dtype):
    weight = whole_numbers(random_weight(KERNELS[stem], 40, 1030, dtype))
    packed = pack_reference(compress(weight, KERNELS[stem]), "triton")
    for M in (1, 5, 16, 40):
        x, bias = (whole_numbers(torch.randn(s)).to(dtype) for s in ((M, 1030), (40,)))
        exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        assert torch.equal(ops.linear(x, packed, bias), exact.to(dtype)), M


@every_dtype
@pytest.mark.parametrize("stem", ["bitmask", "csr"])
def test_any_density_and_rows_of_very_different_lengths(stem, dtype):
    weights = [random_weight(stem, 45, 270, dtype, density) for density in (0.0, 0.05, 1.0)]
    for M, weight in zip((1, 3, 5, 18), (*weights, uneven_weight(75, 390, dtype)), strict=True):
        x = torch.randn(M, weight.shape[1]).to(dtype)
        y = ops.linear(x, pack_reference(compress(weight, stem), "triton"))
        assert_close_to_float64(y, x, weight, None, (M, *weight.shape))


@every_dtype
def test_csr_with_32_bit_columns(dtype):
    weight = random_weight("csr", 3, 65540, dtype, 0.01)
    x = torch.randn(2, 65540).to(dtype)
    y = ops.linear(x, pack_reference(compress(weight, "csr"), "triton"))
    assert_close_to_float64(y, x, weight)


@every_dtype
def test_conversions_of_2_4_are_exact_to_the_bit(dtype):
    op = torch.ops.prunekern
    for case, (N, K) in enumerate((*SHAPES, (31, 129))):
        weight = random_weight("2:4", N, K, dtype, seed=case)
        weight[::3] *= -1  # zeros of both signs
        canonical = compress(weight, "2:4")
        values, meta, broken = op.sparse24_compress_triton(weight, False)
        assert torch.equal(bits(values), bits(canonical.values))
        assert torch.equal(meta, canonical.meta) and not broken
        packed = op.sparse24_pack_triton(values, meta, N, K)
        for ours, wanted in zip(packed, pack_reference(canonical, "triton").tensors, strict=True):
            assert torch.equal(bits(ours), bits(wanted))
        dense = op.sparse24_decompress_triton(*packed, N, K)
        assert torch.equal(bits(dense), bits(decompress(canonical)))


@every_dtype
def test_the_two_largest_of_four_are_kept(dtype):
    for N, K in SHAPES:
        # No two magnitudes of a group are equal: of equals the lower position is kept.
        order = torch.rand(N, -(-K // 4), 4).argsort(-1).view(N, -1)[:, :K]
        dense = ((1 + order) * torch.randn(N, K).sign()).to(dtype)
        wanted = compress(dense.masked_fill(~nm_mask(dense.float().abs(), 2, 4), 0.0), "2:4")
        values, meta, broken = torch.ops.prunekern.sparse24_compress_triton(dense, True)
        assert torch.equal(values, wanted.values) and torch.equal(meta, wanted.meta)
        assert not broken


def test_of_equals_the_lower_positions_are_kept_and_broken_groups_counted():
    ones = torch.ones(3, 10)
    values, meta, _ = torch.ops.prunekern.sparse24_compress_triton(ones, True)
    assert values.tolist() == [[1.0] * 6] * 3 and meta.tolist() == [[0x44, 0x44]] * 3
    broken = torch.ops.prunekern.sparse24_compress_triton(ones, False)[2]
    assert broken.tolist() == [6]  # the third group of a row has but two columns


@every_dtype
def test_opcheck_of_conversions(dtype):
    weight = random_weight("2:4", 20, 36, dtype)
    op = torch.ops.prunekern
    canonical = compress(weight, "2:4")
    packed = pack_reference(canonical, "triton").tensors
    arguments = (canonical.values, canonical.meta, 20, 36)
    torch.library.opcheck(op.sparse24_pack_triton.default, arguments)
    torch.library.opcheck(op.sparse24_decompress_triton.default, (*packed, 20, 36))
    torch.library.opcheck(op.sparse24_compress_triton.default, (weight, False))


@every_format
def test_a_token_reads_nothing_of_its_neighbours(stem):
    for K in (1, 30, 65):
        weight = random_weight(KERNELS[stem], 19, K, torch.float32)
        packed = pack_reference(compress(weight, KERNELS[stem]), "triton")
        x = torch.randn(17, K)
        x[1::2] = float("nan")
        assert_close_to_float64(ops.linear(x, packed)[::2], x[::2].clone(), weight, None, K)


@every_format
@every_dtype
def test_bad_arguments_are_named_as_they_are_on_a_gpu(stem, dtype):
    gpu_checks.check_bad_arguments_are_named((stem, "triton", dtype))


@every_format
def test_gradients_are_those_of_the_dense_layer(stem):
    weight = random_weight(KERNELS[stem], 24, 40, torch.float32)
    packed = pack_reference(compress(weight, KERNELS[stem]), "triton")
    x, bias = torch.randn(3, 40, requires_grad=True), torch.randn(24, requires_grad=True)
    grad = torch.randn(3, 24)
    ours = torch.autograd.grad(ops.linear(x, packed, bias), (x, bias), grad)
    dense = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias), (x, bias), grad)
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b)


@every_format
def test_a_model_runs_on_it_where_it_is_asked_for(stem):
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 20))
    report = prunekern.replace_linears(
        model, kernel=KERNELS[stem], targets="all-linear", layout="triton"
    )
    assert [layer.layout for layer in report.replaced] == ["triton"] * 2
    x = torch.randn(5, 64)
    y = model(x)
    prunekern.restore_linears(model)
    torch.testing.assert_close(y, model(x))


@pytest.mark.slow
def test_the_default_model_has_the_loss_of_the_reference():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prunekern.compare import default_model, measure
    from prunekern.compare.text import default_text, token_windows

    path = default_model.default_model_path()
    model, tokenizer = (
        kind.from_pretrained(path) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    windows = token_windows(tokenizer, default_text(), windows=1)[:, :64]
    losses = {}
    for layout in ("reference", "triton"):
        report = prunekern.replace_linears(model, kernel="2:4", layout=layout)
        assert {layer.layout for layer in report.layers} == {layout}
        losses[layout] = measure.negative_log_likelihood(model, windows)
        prunekern.restore_linears(model)
    assert losses["triton"] == pytest.approx(losses["reference"], rel=1e-5)
