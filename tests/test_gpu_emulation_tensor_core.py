"""mma.sync and mma.sp of the emulator against the fragment tables of the PTX ISA."""

import ml_dtypes
import numpy as np
import pytest
from gpu_emulation import EmulationError
from gpu_emulation.instructions import run

pytestmark = pytest.mark.gpu_emulation

# Where lane 4 g + t holds its element i, as (row, column): the ISA's own wording, shape by shape
# ("Matrix Fragments for mma.m16n8k4 with .tf32" and so on). Keys: K and the element's bits.
A_FRAGMENTS = {
    (4, 32): lambda g, t, i: (g if i == 0 else g + 8, t),
    (8, 32): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    (8, 16): lambda g, t, i: (g if i in (0, 1) else g + 8, t * 2 + (i & 1)),
    (16, 16): lambda g, t, i: (
        g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
        t * 2 + (i & 1) + (8 if i >= 4 else 0),
    ),
    (16, 8): lambda g, t, i: (g if i < 4 else g + 8, t * 4 + (i & 3)),
    (32, 8): lambda g, t, i: (
        g if 0 <= i < 4 or 8 <= i < 12 else g + 8,
        t * 4 + (i & 3) + (16 if i >= 8 else 0),
    ),
}
B_FRAGMENTS = {
    (4, 32): lambda g, t, i: (t, g),
    (8, 32): lambda g, t, i: (t if i == 0 else t + 4, g),
    (8, 16): lambda g, t, i: (t * 2 + (i & 1), g),
    (16, 16): lambda g, t, i: (t * 2 + (i & 1) + (8 if i >= 2 else 0), g),
    (32, 16): lambda g, t, i: (t * 2 + (i & 1) + (0, 8, 16, 24)[i // 2], g),
    (16, 8): lambda g, t, i: (t * 4 + (i & 3), g),
    (32, 8): lambda g, t, i: (t * 4 + (i & 3) + (16 if i >= 4 else 0), g),
    (64, 8): lambda g, t, i: (t * 4 + (i & 3) + (0, 16, 32, 48)[i // 4], g),
}


def c_fragment(g, t, i):
    return (g if i < 2 else g + 8, t * 2 + (i & 1))


# Stored columns of a sparse A: a lane holds the kept two of each group of four columns from
# "firstcol" on (16-bit: t * 4, + 16 from i = 4 on; 8-bit: t * 8, + 32 from i = 8 on).
SPARSE_A_FRAGMENTS = {
    (16, 16): A_FRAGMENTS[8, 16],
    (32, 16): A_FRAGMENTS[16, 16],
    (64, 8): A_FRAGMENTS[32, 8],
}
# Lane and first bit of the metadata of (row, group of four columns) under a selector ("Sparse
# matrix storage", figures of the metadata by shape).
METADATA = {
    (16, 16): lambda row, group, selector: (4 * (row % 8) + selector, 16 * (row // 8) + 4 * group),
    (32, 16): lambda row, group, selector: (
        4 * (row % 8) + 2 * selector + group // 4,
        16 * (row // 8) + 4 * (group % 4),
    ),
    (64, 8): lambda row, group, _: (
        4 * (row % 8) + 2 * (group // 8) + row // 8,
        4 * (group % 8),
    ),
}
SELECTORS = {(16, 16): 4, (32, 16): 2, (64, 8): 1}

NUMBERS = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "f32": np.float32,
    "s32": np.int32,
    "s8": np.int8,
    "u8": np.uint8,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
every = pytest.mark.parametrize


def placed(fragment, count):
    """Index arrays (rows, columns), both [32 lanes, count elements]."""
    table = [[fragment(lane // 4, lane % 4, i) for i in range(count)] for lane in range(32)]
    return tuple(np.moveaxis(np.array(table), 2, 0))


def registers(matrix, fragment):
    """The 32-bit registers that hold the matrix: one array of 32 lanes each."""
    count = matrix.size // 32
    return list(matrix[placed(fragment, count)].view(np.uint32).T.copy())


def multiply(opcode, a, b, c, fragments, extra=None, tail=""):
    """D of one instruction; a, b, c are matrices."""
    inputs = {"a": registers(a, fragments[0]), "b": registers(b, fragments[1])}
    inputs["c"] = registers(c, c_fragment)
    outputs = {f"d{i}": np.uint32 for i in range(len(inputs["c"]))}

    def listed(names):
        return "{" + ", ".join(names) + "}"

    operands = [listed(outputs)]
    operands += [listed(f"{n}{i}" for i in range(len(words))) for n, words in inputs.items()]
    words = {f"{n}{i}": w for n, v in inputs.items() for i, w in enumerate(v)}
    found = run(f"{opcode} {', '.join(operands)}{tail};", **outputs, **words, **(extra or {}))
    d = np.empty((16, 8), c.dtype)
    d[placed(c_fragment, 4)] = np.stack(found, 1).view(c.dtype)
    return d


def matrix(rng, shape, kind, small):
    """Random numbers: all that a byte can be, small integers, or normally distributed floats."""
    dtype = NUMBERS[kind]
    if kind in ("s8", "u8"):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if small:
        return rng.integers(-4, 5, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def seen(x, kind):
    """As float64; of tf32 the tensor core ignores the low 13 bits."""
    if kind == "tf32":
        x = (x.view(np.uint32) & 0xFFFFE000).view(np.float32)
    return x.astype(np.float64)


def check(found, a, b, c, small):
    """Exact where all sums are small integers, else within the sum's error and one rounding."""
    exact = a @ b + c.astype(np.float64)
    if small:
        np.testing.assert_array_equal(found.astype(np.float64), exact)
    else:
        unit = 2.0**-10 if found.dtype == np.float16 else 2.0**-23
        bound = (np.abs(a) @ np.abs(b) + np.abs(c.astype(np.float64))) * unit
        assert (np.abs(found.astype(np.float64) - exact) <= bound).all()


def product(rng, opcode, k, kinds, small, sum_kind):
    """One dense instruction on random matrices, checked."""
    a, b = matrix(rng, (16, k), kinds[0], small), matrix(rng, (k, 8), kinds[1], small)
    c = rng.integers(-50, 50, (16, 8)).astype(NUMBERS[sum_kind])
    bits = 8 * a.itemsize
    d = multiply(opcode, a, b, c, (A_FRAGMENTS[k, bits], B_FRAGMENTS[k, bits]))
    check(d, seen(a, kinds[0]), seen(b, kinds[1]), c, small)


FLOATS = [(k, kind, "f32") for k in (8, 16) for kind in ("f16", "bf16")]
FLOATS += [(8, "f16", "f16"), (16, "f16", "f16"), (4, "tf32", "f32"), (8, "tf32", "f32")]


@every("small", [True, False])
@every("k, kind, sum_kind", FLOATS)
def test_mma_of_floats(k, kind, sum_kind, small):
    opcode = f"mma.sync.aligned.m16n8k{k}.row.col.{sum_kind}.{kind}.{kind}.{sum_kind}"
    rng = np.random.default_rng(k)
    for _ in range(5):
        product(rng, opcode, k, (kind, kind), small, sum_kind)


@every("small", [True, False])
@every("kinds", [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")])
def test_mma_of_fp8(kinds, small):
    opcode = f"mma.sync.aligned.m16n8k32.row.col.f32.{kinds[0]}.{kinds[1]}.f32"
    product(np.random.default_rng(0), opcode, 32, kinds, small, "f32")


@every("k", [16, 32])
@every("kinds", [(a, b) for a in ("s8", "u8") for b in ("s8", "u8")])
def test_mma_of_bytes(kinds, k):
    rng = np.random.default_rng(k)
    for saturate in ("", ".satfinite"):
        opcode = f"mma.sync.aligned.m16n8k{k}.row.col{saturate}.s32.{kinds[0]}.{kinds[1]}.s32"
        product(rng, opcode, k, kinds, True, "s32")


@every("k", [16, 32])
def test_sums_of_bytes_wrap_or_saturate(k):
    a, b = np.full((16, k), 127, np.int8), np.full((k, 8), -128, np.int8)
    a[::2] = -128
    rng = np.random.default_rng(0)
    c = np.where(rng.random((16, 8)) < 0.5, 2**31 - 5, -(2**31) + 5).astype(np.int32)
    exact = a.astype(np.int64) @ b.astype(np.int64) + c
    fragments = A_FRAGMENTS[k, 8], B_FRAGMENTS[k, 8]
    shape = f"mma.sync.aligned.m16n8k{k}.row.col"
    wrapped = multiply(f"{shape}.s32.s8.s8.s32", a, b, c, fragments)
    np.testing.assert_array_equal(wrapped, exact.astype(np.int32))
    saturated = multiply(f"{shape}.satfinite.s32.s8.s8.s32", a, b, c, fragments)
    np.testing.assert_array_equal(saturated, np.clip(exact, -(2**31), 2**31 - 1))


def test_infinities_nan_and_subnormals_pass_through_mma():
    a, b, c = np.zeros((16, 16), np.float16), np.eye(16, 8, dtype=np.float16), np.zeros((16, 8))
    a[0, 0], a[1, 1], a[2, 2], a[3, 3] = np.inf, -np.inf, np.nan, 2.0**-24
    d = multiply(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", a, b, c.astype(np.float32),
        (A_FRAGMENTS[16, 16], B_FRAGMENTS[16, 16]),
    )  # fmt: skip
    np.testing.assert_array_equal(d[0, 0], np.inf)
    np.testing.assert_array_equal(d[1, 1], -np.inf)
    assert np.isnan(d[0, 1:]).all() and np.isnan(d[2]).all()  # infinity times zero; NaN
    assert (d[2].view(np.uint32) == 0x7FFFFFFF).all()
    assert d[3, 3] == 2.0**-24 and not d[4:].any()


def test_an_uninitialised_fragment_is_a_fault():
    words = {n: np.zeros(32, np.uint32) for n in ("a", "b", "c")}
    opcode = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
    for operands in ("{a, u}, {b}, {c, c, c, c}", "{a, a}, {u}, {c, c, c, c}",
                     "{a, a}, {b}, {c, c, c, u}"):  # fmt: skip
        with pytest.raises(EmulationError, match="uninitialised value reaches the tensor core"):
            run(f".reg .b32 u; {opcode} {{d, d, d, d}}, {operands};", d=np.uint32, **words)


# ---- sparse


def random_positions(rng, k, falling):
    """Two of four positions for each row and group: [16, K / 4, 2]; rising unless falling."""
    kept = np.argsort(rng.random((16, k // 4, 4)), axis=2)[..., :2]
    return kept if falling else np.sort(kept, axis=2)


def metadata_words(positions, key, selector):
    """A word a lane; what no row reads stays zero: equal positions, a fault if it were read."""
    words = np.zeros(32, np.uint32)
    for row in range(16):
        for group, (first, second) in enumerate(positions[row].tolist()):
            lane, bit = METADATA[key](row, group, selector)
            words[lane] |= np.uint32((first | second << 2) << bit)
    return words


def expanded(stored, positions):
    """The dense A [16, K] of stored values [16, K / 2]."""
    dense = np.zeros((16, positions.shape[1], 4))
    np.put_along_axis(dense, positions, stored.reshape(positions.shape), 2)
    return dense.reshape(16, -1)


SPARSE = [
    (*key, selector, kind)
    for key, kinds in (((16, 16), ("f16", "bf16")), ((32, 16), ("f16", "bf16")), ((64, 8), ("s8",)))
    for kind in kinds
    for selector in range(SELECTORS[key])
]


def sparse_product(rng, k, kind, selector, positions, flavour, small=True, saturate=""):
    key = k, 8 * np.dtype(NUMBERS[kind]).itemsize
    sum_kind = "s32" if kind == "s8" else "f32"
    a, b = matrix(rng, (16, k // 2), kind, small), matrix(rng, (k, 8), kind, small)
    c = rng.integers(-50, 50, (16, 8)).astype(NUMBERS[sum_kind])
    types = f"{sum_kind}.{kind}.{kind}.{sum_kind}"
    opcode = f"mma.{flavour}.sync.aligned.m16n8k{k}.row.col{saturate}.{types}"
    meta = {"e": metadata_words(positions, key, selector)}
    fragments = SPARSE_A_FRAGMENTS[key], B_FRAGMENTS[key]
    d = multiply(opcode, a, b, c, fragments, meta, f", e, {selector}")
    check(d, expanded(a.astype(np.float64), positions), b.astype(np.float64), c, small)


@every("flavour", ["sp", "sp::ordered_metadata"])
@every("k, bits, selector, kind", SPARSE)
def test_sparse_mma(k, bits, selector, kind, flavour):
    rng = np.random.default_rng(selector)
    for small in (True, kind == "s8"):
        positions = random_positions(rng, k, falling=flavour == "sp")
        sparse_product(rng, k, kind, selector, positions, flavour, small)
    if kind == "s8":
        positions = random_positions(rng, k, falling=False)
        sparse_product(rng, k, kind, selector, positions, flavour, saturate=".satfinite")


@every("k, kind", [(16, "f16"), (32, "bf16"), (64, "s8")])
def test_invalid_metadata_is_a_fault(k, kind):
    rng = np.random.default_rng(0)
    for row, group in [(0, 0), (5, k // 4 - 1), (13, 2)]:
        positions = random_positions(rng, k, falling=False)
        positions[row, group] = 2, 2
        place = f"row {row}, group {group}"
        for flavour in ("sp", "sp::ordered_metadata"):
            with pytest.raises(EmulationError, match=f"positions 2 and 2 of {place} are equal"):
                sparse_product(rng, k, kind, 0, positions, flavour)
        positions[row, group] = 3, 1
        sparse_product(rng, k, kind, 0, positions, "sp")
        with pytest.raises(EmulationError, match=f"positions 3 and 1 of {place} do not rise"):
            sparse_product(rng, k, kind, 0, positions, "sp::ordered_metadata")


@every("k, kind", [(16, "f16"), (32, "f16"), (64, "s8")])
def test_selectors_out_of_range_are_a_fault(k, kind):
    positions = random_positions(np.random.default_rng(0), k, falling=False)
    selector = {16: 4, 32: 2, 64: 1}[k]
    with pytest.raises(EmulationError, match=f"selector {selector} is out of range"):
        key = k, 8 * np.dtype(NUMBERS[kind]).itemsize
        rng = np.random.default_rng(0)
        a, b = matrix(rng, (16, k // 2), kind, True), matrix(rng, (k, 8), kind, True)
        total = "s32" if kind == "s8" else "f32"
        multiply(
            f"mma.sp.sync.aligned.m16n8k{k}.row.col.{total}.{kind}.{kind}.{total}", a, b,
            np.zeros((16, 8), NUMBERS[total]), (SPARSE_A_FRAGMENTS[key], B_FRAGMENTS[key]),
            {"e": metadata_words(positions, key, 0)}, f", e, {selector}",
        )  # fmt: skip
