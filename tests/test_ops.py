import pytest
import torch

from prunekern import ops
from prunekern.formats import FORMATS, compress, decompress
from prunekern.layouts import pack, unpack
from prunekern.testing import (
    SHAPES,
    TOKENS,
    assert_close_to_float64,
    max_error,
    random_weight,
    tolerance,
    variants,
    whole_numbers,
)

VARIANTS = variants()
KERNEL = {cls.stem: name for name, cls in FORMATS.items()}
DENSITIES = (0.5, 0.1, 0.9, 0.0, 1.0)


def _ids(v):
    return f"{v[0]}-{v[1]}-{str(v[2])[6:]}"


every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=_ids)
# torch's own product, which the references use, rounds differently for other strides and threads.
COMPILED = [v for v in VARIANTS if v[1] != "reference"]
every_kernel = pytest.mark.parametrize("variant", COMPILED, ids=_ids)


def is_rounded(variant):
    """Whether the format keeps whole numbers and scales."""
    return FORMATS[KERNEL[variant[0]]].bits is not None


def _packed(variant, N, K, density=0.5, seed=0):
    stem, layout, dtype = variant
    weight = random_weight(KERNEL[stem], N, K, dtype, density, seed)
    return weight, pack(compress(weight, KERNEL[stem]), layout)


def _poison():
    """Leaves NaN in the allocator's free blocks, which outputs are then made of."""
    for size in (64, 1000, 4096, 40000):
        torch.full((size,), float("nan"))


@every_variant
def test_every_shape_and_token_count(variant):
    dtype = variant[2]
    case = 0
    for N, K in (*SHAPES, (70, 1000)):
        for M in TOKENS:
            case += 1
            weight, packed = _packed(variant, N, K, DENSITIES[case % 5], seed=case)
            x = torch.randn(M, K).to(dtype)
            bias = torch.randn(N).to(dtype) if case % 2 else None
            _poison()
            y = ops.linear(x, packed, bias)
            assert y.shape == (M, N) and y.dtype == dtype
            assert_close_to_float64(y, x, weight, bias, (N, K, M))


@every_variant
def test_whole_numbers_are_exact(variant):
    stem, layout, dtype = variant
    for case, (N, K) in enumerate((*SHAPES, (70, 1000), (576, 1536))):
        weight = whole_numbers(random_weight(KERNEL[stem], N, K, dtype, seed=case))
        packed = pack(compress(weight, KERNEL[stem]), layout)
        # Around 16 tokens kernels change; the big shape is for the tiles, not for the tokens.
        for M in (1, 4, 17) if N * K > 10**5 else TOKENS:
            x = whole_numbers(torch.randn(M, K)).to(dtype)
            bias = whole_numbers(torch.randn(N)).to(dtype) if M % 2 else None
            exact = torch.nn.functional.linear(
                x.double(), weight.double(), None if bias is None else bias.double()
            )
            _poison()
            assert torch.equal(ops.linear(x, packed, bias), exact.to(dtype)), (N, K, M)


@every_variant
def test_a_token_reads_nothing_of_its_neighbours(variant):
    for K in (1, 3, 5, 30, 63, 65, 70):  # off the tile: vectors reach beyond the end of a row
        weight, packed = _packed(variant, 19, K)
        for M in (2, 5, 17, 40, 70):
            x = torch.randn(M, K).to(variant[2])
            x[1::2] = float("nan")
            y = ops.linear(x, packed)[::2]
            # a copy: torch's own product reads beyond a row's end on CPUs with AMX
            assert_close_to_float64(y, x[::2].clone(), weight, None, (K, M))


@every_variant
def test_long_rows_keep_their_precision(variant):
    if "scalar" in variant[1]:
        N, tokens = 8, (1, 3)
    else:
        N, tokens = 96, (1, 4, 16, 40, 100)
    for M in tokens:
        weight, packed = _packed(variant, N, 11008)
        x = torch.randn(M, 11008).to(variant[2])
        assert max_error(ops.linear(x, packed), x, weight) <= tolerance(x, weight)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[1] == "amx"], ids=_ids)
def test_amx_ends_of_tiles_slices_and_chunks(variant):
    # x in slices of 1024 tiles of 16 tokens x 32 inputs, chunks of 256 tokens, 1024 rows at a time
    for N, K, M in (
        (1050, 2081, 250),
        (17, 6210, 81),
        (33, 31, 33),
        (49, 95, 47),
        (48, 65, 16),
        (31, 64, 49),
        (16, 33, 257),
        (32, 4128, 515),
    ):
        weight = whole_numbers(random_weight(KERNEL[variant[0]], N, K, variant[2], seed=M))
        packed = pack(compress(weight, KERNEL[variant[0]]), "amx")
        x = whole_numbers(torch.randn(M, K)).to(variant[2])
        bias = whole_numbers(torch.randn(N)).to(variant[2])
        exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        _poison()
        assert torch.equal(ops.linear(x, packed, bias), exact.to(variant[2])), (N, K, M)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[0] == "csr"], ids=_ids)
def test_csr_with_wide_columns(variant):
    for M in (1, 6):
        weight, packed = _packed(variant, 3, 65540, density=0.01)
        assert packed.tensors[1].dtype == torch.int32
        x = torch.randn(M, 65540).to(variant[2])
        assert max_error(ops.linear(x, packed), x, weight) <= tolerance(x, weight)


@every_variant
def test_uneven_rows(variant):
    stem, layout, dtype = variant
    weight = random_weight(KERNEL[stem], 37, 260, dtype, 0.6)
    weight[::3] = 0
    weight[1, 100:] = 0
    packed = pack(compress(weight, KERNEL[stem]), layout)
    for M in (1, 5, 50):
        x = torch.randn(M, 260).to(dtype)
        assert max_error(ops.linear(x, packed), x, weight) <= tolerance(x, weight)


@every_kernel
def test_any_strides_and_dimensions(variant):
    dtype = variant[2]
    _, packed = _packed(variant, 20, 36)
    x = torch.randn(2, 3, 5, 36).to(dtype)
    y = ops.linear(x, packed)
    assert y.shape == (2, 3, 5, 20)
    assert torch.equal(ops.linear(x.transpose(0, 2), packed), y.transpose(0, 2))
    wide = torch.randn(4, 80).to(dtype)
    assert torch.equal(
        ops.linear(wide[:, 7:43], packed), ops.linear(wide[:, 7:43].contiguous(), packed)
    )
    assert torch.equal(ops.linear(x[0, 0, 0], packed), ops.linear(x[0, 0, :1], packed)[0])
    assert ops.linear(x[:, :0], packed).shape == (2, 0, 5, 20)


@every_kernel
def test_result_does_not_depend_on_threads(variant):
    before = torch.get_num_threads()
    try:
        for M in (1, 7, 40, 150):
            _, packed = _packed(variant, 300, 512)
            x = torch.randn(M, 512).to(variant[2])
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(ops.linear(x, packed))
            assert all(torch.equal(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


@every_variant
def test_nan_and_infinity_come_through_where_a_weight_is_kept(variant):
    stem, layout, dtype = variant
    weight = torch.zeros(5, 70, dtype=dtype)
    weight[2, 33] = 1.5
    packed = pack(compress(weight, KERNEL[stem]), layout)
    for M in (1, 20, 60):
        x = torch.ones(M, 70, dtype=dtype)
        x[0, 33] = float("nan")
        y = ops.linear(x, packed)
        assert y[0, 2].isnan() and not y[1:].isnan().any()
        if is_rounded(variant):
            continue  # no whole number is infinite
        weight_nan = weight.clone()
        weight_nan[4, 69] = float("inf")
        y = ops.linear(torch.ones_like(x), pack(compress(weight_nan, KERNEL[stem]), layout))
        assert y[:, 4].isinf().all() and y[:, :4].isfinite().all()


@every_variant
def test_gradients_are_those_of_the_dense_layer(variant):
    dtype = variant[2]
    weight, packed = _packed(variant, 24, 40)
    x = torch.randn(3, 7, 40).to(dtype).requires_grad_()
    bias = torch.randn(24).to(dtype).requires_grad_()
    grad = torch.randn(3, 7, 24).to(dtype)
    ours = torch.autograd.grad(ops.linear(x, packed, bias), (x, bias), grad)
    dense = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias), (x, bias), grad)
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b)
    assert ops.linear(x.detach(), packed, bias.detach()).grad_fn is None
    none = torch.autograd.grad(ops.linear(x[:0], packed, bias).sum(), (x, bias))
    assert not none[0].any() and not none[1].any()
    only_bias = torch.autograd.grad(ops.linear(x.detach(), packed, bias), bias, grad)[0]
    torch.testing.assert_close(only_bias, dense[1])


@every_variant
def test_opcheck(variant):
    _, packed = _packed(variant, 20, 36)
    op = ops.op_for(*variant[:2])
    bias = torch.randn(20).to(variant[2])
    for x, b in ((torch.randn(3, 36), None), (torch.randn(2, 3, 36), bias)):
        torch.library.opcheck(op, (x.to(variant[2]), *packed.tensors, b, 20, 36))


PACKED_IN_CPP = [v for v in VARIANTS if v[1].startswith(("avx", "amx")) and v[0] != "csr"]


@pytest.mark.parametrize("variant", PACKED_IN_CPP, ids=_ids)
def test_opcheck_of_packers(variant):
    stem, layout, dtype = variant
    c = compress(random_weight(KERNEL[stem], 20, 36, dtype), KERNEL[stem])
    op = getattr(torch.ops.prunekern, f"{stem}_pack_{layout}").default
    torch.library.opcheck(op, (c.values, c.meta if stem == "sparse24" else c.bitmask, 20, 36))


def test_compile_without_a_break():
    _, packed = _packed(VARIANTS[0], 24, 40)
    bias = torch.randn(24).to(packed.dtype)
    compiled = torch.compile(lambda x: ops.linear(torch.relu(x), packed, bias) * 2, fullgraph=True)
    x = torch.randn(5, 40).to(packed.dtype)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), ops.linear(torch.relu(x), packed, bias) * 2)


@every_variant
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_every_variant_traces_into_one_graph(variant, grad):
    _, packed = _packed(variant, 24, 40)
    bias = torch.randn(24).to(packed.dtype).requires_grad_(grad)

    def layer(x):
        return ops.linear(torch.relu(x), packed, bias) * 2

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for M in (5, 2, 9):  # one graph for all of them
        x = torch.randn(M, 40).to(packed.dtype).requires_grad_(grad)
        ours, eager = compiled(x), layer(x)
        torch.testing.assert_close(ours, eager)
        if grad:
            wanted = torch.autograd.grad(eager.sum(), (x, bias))
            for a, b in zip(torch.autograd.grad(ours.sum(), (x, bias)), wanted, strict=True):
                torch.testing.assert_close(a, b)


@every_variant
def test_inference_mode(variant):
    _, packed = _packed(variant, 24, 40)
    with torch.inference_mode():
        assert not ops.linear(torch.randn(2, 40).to(packed.dtype), packed).requires_grad


@every_kernel
def test_bad_arguments_are_named(variant):
    stem, _, dtype = variant
    op = ops.op_for(*variant[:2])
    _, packed = _packed(variant, 20, 36)
    t = packed.tensors
    x = torch.randn(3, 36).to(dtype)
    other = torch.float16 if dtype != torch.float16 else torch.float32
    bad = [
        ((x[:, :-1], *t, None, 20, 36), "last dimension of x must be in_features = 36"),
        ((x.to(other), *t, None, 20, 36), "x must have the weight's dtype"),
        (
            (x.double(), *t, None, 20, 36),
            "x must be float32, bfloat16 or float16, got (Double|torch.float64)",
        ),
        ((torch.tensor(1.0).to(dtype), *t, None, 20, 36), "x must have 1 to 16 dimensions"),
        (
            (x, *t, torch.zeros(19).to(dtype), 20, 36),
            r"bias must have the shape \[20\].*got \[19\]",
        ),
        ((x, *t, torch.zeros(20).to(other), 20, 36), "bias must be"),
        ((x, *t, None, 200, 36), "must have the shape"),
        ((x, *t, None, 0, 36), "out_features must be at least 1"),
        ((x, *t, None, 20, -4), "in_features must be at least 1"),
        ((x, t[0][:-1], *t[1:], None, 20, 36), "values must have the shape"),
        ((x, t[0].double(), *t[1:], None, 20, 36), "must"),
        ((x, t[0], t[1].to(torch.int16), *t[2:], None, 20, 36), "must be"),
        ((x, t[0], t[1][..., :-1], *t[2:], None, 20, 36), "must have the shape"),
    ]
    if stem != "csr":
        bad.append(((torch.randn(3, 360).to(dtype), *t, None, 20, 360), "must have the shape"))
    for arguments, message in bad:
        with pytest.raises(RuntimeError, match=f"prunekern::{stem}_linear_.*{message}"):
            op(*arguments)


def test_layouts_that_do_not_run_here_are_refused():
    with pytest.raises(ValueError, match=r"must be one that runs here .*got 'sm80'"):
        ops.op_for("csr", "sm80")
    with pytest.raises(ValueError, match="sm80 runs on cuda, not on cpu"):
        ops.check_runs("sparse24", "sm80", torch.device("cpu"), torch.float16, "test")


def test_default_layout_asks_for_the_capability_of_the_device(monkeypatch):
    asked = []

    def capability(device):
        asked.append(device)
        return (8, 6)

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    built = frozenset({("sparse24", "sm90a"), ("sparse24", "sm80"), ("sparse24", "reference")})
    monkeypatch.setitem(ops._AVAILABLE, "cuda", built)
    device = torch.device("cuda", 1)
    assert ops.default_layout("sparse24", device, torch.bfloat16) == "sm80"
    assert ops.default_layout("sparse24", device, torch.float32) == "reference"
    assert asked == [device, device]
    with pytest.raises(ValueError, match=r"'sm90a': sm90a needs compute capability 9\.0, .* 8\.6"):
        ops.check_runs("sparse24", "sm90a", device, torch.bfloat16, "test")


GPU_VARIANTS = [v for v in variants("cuda") if v[1] != "reference"]


@pytest.mark.parametrize("variant", GPU_VARIANTS, ids=_ids)
def test_fakes_of_gpu_ops(variant):
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = ops.OPS[variant[:2]]
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 3, 128, dtype=variant[2], device="cuda")
        # a packed weight of the format: what a fake of it is like is not looked at
        weight = [x.new_empty(4) for _ in range(len(op._schema.arguments) - 4)]
        y = op(x, *weight, None, 192, 128)
    assert y.shape == (2, 3, 192) and y.dtype == variant[2] and y.device.type == "cuda"


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not is_rounded(v)], ids=_ids)
def test_weight_gradient_is_that_of_the_dense_layer_where_weights_are_kept(variant):
    dtype = variant[2]
    weight, packed = _packed(variant, 24, 42)
    x, grad = torch.randn(3, 7, 42).to(dtype), torch.randn(3, 7, 24).to(dtype)
    dense = weight.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(torch.nn.functional.linear(x, dense), dense, grad)
    ours = ops.weight_grad(x, grad, packed)
    c = unpack(packed)
    assert ours.shape == c.values.shape
    scattered = decompress(c.with_values(ours))
    torch.testing.assert_close(scattered[weight != 0], wanted[weight != 0])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if is_rounded(v)], ids=_ids)
def test_whole_numbers_have_no_gradient(variant):
    _, packed = _packed(variant, 24, 42)
    x, grad = torch.randn(3, 42).to(variant[2]), torch.randn(3, 24).to(variant[2])
    with pytest.raises(ValueError, match="must have float values to train, got sparse24_int"):
        ops.weight_grad(x, grad, packed)


def test_table_holds_every_op_of_the_library():
    names = {name for name in dir(torch.ops.prunekern) if "_linear_" in name}
    assert {f"{stem}_linear_{layout}" for stem, layout in ops.OPS} >= names
    if ops.LIBRARY_ERROR is None:
        assert {("sparse24", "scalar"), ("csr", "scalar"), ("bitmask", "scalar")} <= ops.available()


def test_public_linear_equals_reference_on_canonical():
    from prunekern import reference

    for kernel in FORMATS:
        weight = random_weight(kernel, 12, 20, torch.float32)
        c = compress(weight, kernel)
        x = torch.randn(4, 20)
        torch.testing.assert_close(reference.linear(x, c), x @ decompress(c).t())
