"""What every op for GPUs must do on a real one, as plain functions: torch is all that they need.

Each takes (stem, layout, dtype) and raises AssertionError. test_gpu.py runs them under pytest, and
benchmarks/gpu.py where there is none. Without a GPU most can run on the CPU too, so that
they are tried before somebody has one.
"""

from __future__ import annotations

import torch
from torch import Tensor

import prunekern
from prunekern import ops
from prunekern.formats import FORMATS, compress, decompress
from prunekern.layouts import RIVALS, ROUND_X, Packed, pack, pack_reference, unpack, why_not
from prunekern.testing import (
    assert_close_to_float64,
    assert_close_to_rounded,
    random_weight,
    variants,
    whole_numbers,
)

TOKENS = (*range(1, 18), 31, 63, 64, 65, 127, 129, 300)
# (N, K): one panel and less, off every tile, rows that are padded, many panels a block.
SHAPES = ((1, 1), (3, 5), (16, 64), (65, 67), (100, 301), (192, 1000), (256, 512), (1024, 4096))
KERNEL = {cls.stem: name for name, cls in FORMATS.items()}
Variant = tuple[str, str, torch.dtype]
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def variants_here() -> list[Variant]:
    """Every op that was built for the device and runs there, but for the references."""
    return [
        (stem, layout, dtype)
        for stem, layout, dtype in variants(DEVICE.type)
        if layout != "reference" and not why_not(stem, layout, ops.facts_of(DEVICE, dtype))
    ]


def _packed(variant: Variant, N: int, K: int, seed: int = 0) -> tuple[Tensor, Packed]:
    stem, layout, dtype = variant
    weight = random_weight(KERNEL[stem], N, K, dtype, seed=seed).to(DEVICE)
    return weight, pack(compress(weight, KERNEL[stem]), layout)


def _normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def _poison() -> None:
    """Leaves NaN in the allocator's free blocks, which outputs are then made of."""
    for elements in (64, 1000, 40000, 400000):
        torch.full((elements,), float("nan"), device=DEVICE)


def _assert_close(variant: Variant, *case) -> None:
    (assert_close_to_rounded if variant[1] in ROUND_X else assert_close_to_float64)(*case)


def check_every_shape_and_token_count(variant: Variant, tokens=TOKENS, shapes=SHAPES) -> None:
    dtype, case = variant[2], 0
    for N, K in shapes:
        weight, packed = _packed(variant, N, K, seed=N + K)
        for M in tokens:
            case += 1
            x = _normal(M, K, dtype=dtype)
            bias = _normal(N, dtype=dtype) if case % 2 else None
            _poison()
            y = ops.linear(x, packed, bias)
            assert y.shape == (M, N) and y.dtype == dtype
            _assert_close(variant, y, x, weight, bias, (N, K, M))


def check_many_tokens(variant: Variant) -> None:
    """So many that a layout may take another way: under autocast, in a graph, odd rows."""
    stem, layout, dtype = variant
    if layout in RIVALS.get(stem, ()):
        return  # torch's own, which autocast converts
    M = 6000 if DEVICE.type == "cuda" else 300
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    for N, K in ((1030, 1021), (1024, 1024)):
        weight, packed = _packed(variant, N, K)
        for bias in (None, _normal(N, dtype=dtype)):
            x = _normal(3, M // 3, K, dtype=dtype)
            _poison()
            with torch.autocast(DEVICE.type, other):
                y = ops.linear(x, packed, bias)
            assert y.shape == (3, M // 3, N) and y.dtype == dtype
            _assert_close(variant, y.view(M, N), x.view(M, K), weight, bias, (N, K, M))
            if DEVICE.type == "cuda":
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    y = ops.linear(x, packed, bias)
                x.copy_(_normal(*x.shape, dtype=dtype))
                graph.replay()
                _assert_close(variant, y.view(M, N), x.view(M, K), weight, bias, (N, K, "graph"))


def check_whole_numbers_are_exact(variant: Variant) -> None:
    stem, layout, dtype = variant
    if layout in ROUND_X:
        return  # x's whole numbers are rounded to others
    for N, K in SHAPES:
        weight = whole_numbers(random_weight(KERNEL[stem], N, K, dtype, seed=N)).to(DEVICE)
        packed = pack(compress(weight, KERNEL[stem]), layout)
        for M in (1, 7, 16, 17, 64, 130):
            x = whole_numbers(torch.randn(M, K)).to(DEVICE, dtype)
            exact = (x.double() @ weight.double().t()).to(dtype)
            _poison()
            assert torch.equal(ops.linear(x, packed), exact), (N, K, M)


def check_packing(variant: Variant) -> None:
    stem, layout, _ = variant
    for N, K in SHAPES:
        weight, packed = _packed(variant, N, K)
        assert torch.equal(decompress(unpack(packed)), weight), (N, K)
        if layout != "cusparselt":  # whose order only cuSPARSELt knows
            c = compress(weight.cpu(), KERNEL[stem])
            for ours, wanted in zip(packed.tensors, pack_reference(c, layout).tensors, strict=True):
                assert torch.equal(ours.cpu(), wanted), (N, K)


def check_views_and_dimensions(variant: Variant) -> None:
    _, packed = _packed(variant, 72, 136)
    x = _normal(2, 3, 5, 136, dtype=variant[2])
    y = ops.linear(x, packed)
    assert y.shape == (2, 3, 5, 72)
    assert torch.equal(ops.linear(x.transpose(0, 2).contiguous(), packed), y.transpose(0, 2))
    assert torch.equal(ops.linear(x.transpose(0, 2), packed), y.transpose(0, 2))
    wide = _normal(4, 300, dtype=variant[2])
    for start in (1, 7, 8):  # addresses off 16 bytes, and rows of another stride
        cut = wide[:, start : start + 136]
        assert torch.equal(ops.linear(cut, packed), ops.linear(cut.clone(), packed))
        row = wide[0, start : start + 136]
        assert torch.equal(ops.linear(row, packed), ops.linear(row.clone(), packed))
    assert ops.linear(x[:, :0], packed).shape == (2, 0, 5, 72)


def check_repeats_to_the_bit(variant: Variant) -> None:
    _, packed = _packed(variant, 1024, 4096)
    for M in (1, 8, 17, 64, 300):
        x = _normal(M, 4096, dtype=variant[2])
        first = ops.linear(x, packed)
        for _ in range(20):
            assert torch.equal(ops.linear(x, packed), first), M


def check_streams(variant: Variant) -> None:
    """Two streams at once, each with a workspace of its own."""
    layers = [_packed(variant, 512, 2048, seed=s)[1] for s in (1, 2)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for M in (1, 16, 64):
        x = _normal(M, 2048, dtype=variant[2])
        wanted = [ops.linear(x, layer) for layer in layers]
        torch.cuda.synchronize()
        results: list[list[Tensor]] = [[], []]
        for _ in range(30):
            for stream, layer, into in zip(streams, layers, results, strict=True):
                with torch.cuda.stream(stream):
                    into.append(ops.linear(x, layer))
        torch.cuda.synchronize()
        for ours, one in zip(results, wanted, strict=True):
            assert all(torch.equal(y, one) for y in ours), M


def check_graphs(variant: Variant) -> None:
    """Captured on a stream that has run nothing yet, replayed on other numbers."""
    _, first = _packed(variant, 512, 2048, seed=1)
    _, second = _packed(variant, 2048, 512, seed=2)
    for M in (1, 9, 64):
        x = _normal(M, 2048, dtype=variant[2])
        ops.linear(ops.linear(x, first), second)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            y = ops.linear(ops.linear(x, first), second)
        for _ in range(3):
            x.copy_(_normal(M, 2048, dtype=variant[2]))
            graph.replay()
            assert torch.equal(y, ops.linear(ops.linear(x, first), second)), M


def check_gradients(variant: Variant) -> None:
    dtype = variant[2]
    weight, packed = _packed(variant, 72, 136)
    x = _normal(3, 7, 136, dtype=dtype).requires_grad_()
    bias = _normal(72, dtype=dtype).requires_grad_()
    grad = _normal(3, 7, 72, dtype=dtype)
    ours = torch.autograd.grad(ops.linear(x, packed, bias), (x, bias), grad)
    dense = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias), (x, bias), grad)
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b)


def check_bad_arguments_are_named(variant: Variant) -> None:
    stem, layout, dtype = variant
    if layout in RIVALS.get(stem, ()):
        return  # torch's own checks
    weight, packed = _packed(variant, 72, 136)
    op, t = ops.OPS[stem, layout], packed.tensors
    second = list(compress(weight, KERNEL[stem]).tensors())[1]
    x = _normal(3, 136, dtype=dtype)
    other = torch.float16 if dtype != torch.float16 else torch.float32
    bad = {
        "last dimension of x must be in_features = 136": (x[:, :-1], *t, None, 72, 136),
        "x must have the weight's dtype": (x.to(other), *t, None, 72, 136),
        "bias must have the shape [72]": (x, *t, x[0, :71].clone(), 72, 136),
        "must have the shape": (x, *t, None, 720, 136),
        "out_features must be at least 1": (x, *t, None, 0, 136),
    }
    if DEVICE.type == "cuda":
        elsewhere = f"{second} must be on cuda:0, got cpu"
        bad[elsewhere] = (x, t[0], t[1].cpu(), *t[2:], None, 72, 136)
        bad["x must be on cuda:0, got cpu"] = (x.cpu(), *t, None, 72, 136)
    for message, arguments in bad.items():
        try:
            op(*arguments)
        except RuntimeError as error:
            assert f"prunekern::{stem}_linear_{layout}: " in str(error), error
            assert message in str(error), error
        else:
            raise AssertionError(f"{layout}: must be refused: {message}")


def check_layers_move(variant: Variant) -> None:
    """A layer of the CPU packs anew on the GPU, runs there, and comes back exactly."""
    stem, _, dtype = variant
    linear = torch.nn.Linear(136, 72, dtype=dtype)
    linear.weight.data = random_weight(KERNEL[stem], 72, 136, dtype)
    layer = prunekern.SparseLinear.from_linear(linear, KERNEL[stem])
    before = layer.weight
    layer.to(DEVICE)
    assert layer.layout == ops.default_layout(stem, DEVICE, dtype)
    x = _normal(5, 136, dtype=dtype)
    with torch.no_grad():
        _assert_close(variant, layer(x), x, before.to(DEVICE), layer.bias.detach())
    assert torch.equal(layer.cpu().weight, before)


CHECKS = tuple(f for name, f in globals().items() if name.startswith("check_"))
NEED_GPU = (check_streams, check_graphs)


def smoke() -> None:
    """A part of the above that fits a sanitizer, which slows launches by a hundred times."""
    for variant in variants_here():
        check_every_shape_and_token_count(variant, (1, 9, 17, 130), ((65, 67), (192, 1000)))
        check_graphs(variant)


if __name__ == "__main__":
    smoke()
