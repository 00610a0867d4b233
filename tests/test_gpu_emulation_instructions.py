"""The emulator's instructions, one by one, against formulas that owe nothing to its code."""

import math
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from gpu_emulation import EmulationError, Module
from gpu_emulation.exact import F16, F32, FORMATS, TF32, rounded, rounded_root
from gpu_emulation.instructions import run, text

pytestmark = [
    pytest.mark.gpu_emulation,
    pytest.mark.filterwarnings("ignore:invalid value"),  # NaN of ml_dtypes, cast
]
bfloat16 = ml_dtypes.bfloat16
HALVES = {"f16": np.float16, "bf16": bfloat16}
INTEGERS = {f"{k}{b}": np.dtype(f"{n}{b // 8}") for k, n in ("si", "uu") for b in (8, 16, 32, 64)}
ROUNDINGS = ("rn", "rz", "rm", "rp")
CANONICAL_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}
every = pytest.mark.parametrize


def type_of(name):
    return (INTEGERS.get(name) or np.dtype(FORMATS[name].type)).type


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def assert_same(found, expected, kind):
    """To the bit; a NaN must be the canonical one, of f64 any."""
    expected = np.asarray(expected).astype(type_of(kind))
    nan = np.isnan(expected.astype(float))
    if kind in CANONICAL_NAN:
        assert (bits(found)[nan] == CANONICAL_NAN[kind]).all()
    else:
        assert np.isnan(found[nan]).all()
    np.testing.assert_array_equal(bits(found)[~nan], bits(expected)[~nan])


# ---- operands


def all_halves(kind):
    return np.arange(65536, dtype=np.uint16).view(HALVES[kind])


def floats(kind, seed=0, count=300):
    """Zeros, the edges of the subnormals, infinities, NaN, small integers and random patterns."""
    form = FORMATS[kind]
    subnormal = form.least_normal / 2**form.mantissa
    edges = [
        0, 1, 1.5, 2, 3, subnormal, 3 * subnormal, form.least_normal - subnormal,
        form.least_normal, form.largest, 1 + Fraction(1, 2**form.mantissa), 0.1, math.inf,
    ]  # fmt: skip
    edges = np.array([float(e) for e in edges]).astype(form.type)
    rng = np.random.default_rng(seed)
    size = edges.dtype.itemsize
    random = rng.integers(0, 256, count * size, np.uint8).view(form.type)
    near = rng.standard_normal(count).astype(form.type)
    return np.concatenate([edges, -edges, np.array([np.nan], form.type), random, near])


def float_tuples(kind, operands, count=500):
    """Rows of operands: all pairs of edges, then random ones, some of like magnitude."""
    rng = np.random.default_rng(operands)
    columns = [floats(kind, seed=i) for i in range(operands)]
    edges = 27
    if operands == 1:
        return columns
    pairs = np.array(np.meshgrid(range(edges), range(edges))).reshape(2, -1)
    places = [np.concatenate([p, rng.integers(0, len(columns[0]), count)]) for p in pairs]
    while len(places) < operands:
        places.append(rng.integers(0, len(columns[0]), len(places[0])))
    return [c[p] for c, p in zip(columns, places, strict=True)]


def integers(kind, seed=0, count=200):
    dtype = INTEGERS[kind]
    info = np.iinfo(dtype)
    edges = {0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, info.max, info.max - 1}
    edges |= {info.min, info.min + 1, info.max // 2, info.max // 2 + 1, info.max // 3}
    if info.min < 0:
        edges |= {-1, -2, -3, -128}
    edges = [e for e in sorted(edges) if e <= info.max]
    rng = np.random.default_rng(seed)
    random = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
    small = (random >> np.asarray(rng.integers(0, info.bits, count), dtype)).astype(dtype)
    return np.concatenate([np.array(edges, dtype), random, small])


def integer_tuples(*kinds, count=1000):
    rng = np.random.default_rng(len(kinds))
    return [rng.permutation(np.resize(integers(k, i), count)) for i, k in enumerate(kinds)]


def wrapped(values, kind):
    """Python integers modulo the type's range."""
    dtype = INTEGERS[kind]
    mask = (1 << 8 * dtype.itemsize) - 1
    return np.array([int(v) & mask for v in values], f"u{dtype.itemsize}").view(dtype)


def lanes(*arrays):
    """The rows as Python integers."""
    return zip(*(a.tolist() for a in arrays), strict=True)


# ---- cvt

INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
SOURCES = {"f16": all_halves("f16"), "bf16": all_halves("bf16")} | {
    kind: np.concatenate(
        [floats(kind, count=2000)]
        + [s * 2.0**e + d for e in range(66) for s in (1, -1) for d in (-1, -0.5, 0, 0.5, 1, 1.5)],
        axis=None,
    ).astype(FORMATS[kind].type)
    for kind in ("f32", "f64")
}


def register(kind):
    """The type of the register that holds a value: bytes are in 16 bits."""
    return {"s8": np.int16, "u8": np.uint16}.get(kind) or type_of(kind)


@every("to", ["f32", "f64"])
@every("kind", HALVES)
def test_cvt_half_to_float(kind, to):
    x = all_halves(kind)
    found = run(f"cvt.{to}.{kind} d, a;", d=type_of(to), a=x)
    assert_same(found, x.astype(type_of(to)), to)


def integer_of(value, kind, source):
    """What a float that is already integral becomes: clamped, NaN by the ISA's rule."""
    info = np.iinfo(INTEGERS[kind])
    if math.isnan(value):
        zero = source != "f64" and info.bits != 64
        return 0 if zero else wrapped([1 << info.bits - 1], kind)[0]
    if math.isinf(value):
        return info.max if value > 0 else info.min
    return min(max(int(value), info.min), info.max)


@every("to", INTEGERS)
@every("mode", INTEGRAL)
@every("source", SOURCES)
def test_cvt_float_to_integer(source, mode, to):
    x = SOURCES[source]
    found = run(f"cvt.{mode}.{to}.{source} d, a;", d=register(to), a=x)
    whole = INTEGRAL[mode](x.astype(float))
    expected = [integer_of(v, to, source) for v in whole.tolist()]
    np.testing.assert_array_equal(found, np.array(expected, INTEGERS[to]).astype(register(to)))


@every("mode", INTEGRAL)
@every("kind", ["f16", "f32", "f64"])
def test_cvt_to_an_integral_float(kind, mode):
    x = SOURCES[kind]
    found = run(f"cvt.{mode}.{kind}.{kind} d, a;", d=type_of(kind), a=x)
    assert_same(found, INTEGRAL[mode](x.astype(float)), kind)


@every("mode", ROUNDINGS)
@every("to", FORMATS)
@every("source", INTEGERS)
def test_cvt_integer_to_float(source, to, mode):
    form, info = FORMATS[to], np.iinfo(INTEGERS[source])
    steps = {s * (2**e + d) for e in range(65) for s in (1, -1) for d in (-1, 0, 1)}
    steps |= {s * ((2 * m + 1) * 2**e + d) for e in range(50) for m in (2**8, 2**11, 2**24 + 1)
              for s in (1, -1) for d in (-1, 0, 1)}  # fmt: skip
    values = [v for v in sorted(steps) if info.min <= v <= info.max]
    x = np.array(values, INTEGERS[source])
    found = run(f"cvt.{mode}.{to}.{source} d, a;", d=form.type, a=x.astype(register(source)))
    expected = [rounded(Fraction(v), form, mode) if v else 0.0 for v in values]
    assert_same(found, expected, to)


@every("to", INTEGERS)
@every("saturate", ["", ".sat"])
@every("source", INTEGERS)
def test_cvt_integer_to_integer(source, saturate, to):
    x = integers(source)
    found = run(f"cvt{saturate}.{to}.{source} d, a;", d=register(to), a=x.astype(register(source)))
    info = np.iinfo(INTEGERS[to])
    values = [min(max(v, info.min), info.max) if saturate else v for v in x.tolist()]
    np.testing.assert_array_equal(found, wrapped(values, to).astype(register(to)))


def around_halves(kind):
    """f32 values at each half, at the middle to the next one, and one step to either side."""
    x = np.abs(all_halves(kind)[: 0x7F80 if kind == "bf16" else 0x7C00].astype(np.float64))
    middle = ((x[:-1] + x[1:]) / 2).astype(np.float32)
    sides = [np.nextafter(middle, np.float32(s)) for s in (0, np.inf)]
    largest = np.float64(FORMATS[kind].largest)
    beyond = np.array([largest * (1 + 2.0**-k) for k in range(1, 14)])
    with np.errstate(over="ignore"):
        positive = np.concatenate([x, middle, *sides, beyond, [np.inf, np.nan]]).astype(np.float32)
    return np.concatenate([positive, -positive])


def to_half(x, kind, mode, relu="", finite=""):
    """f32 to a half by ml_dtypes and numpy; towards zero by a step back where that went too far."""
    x = np.where(x < 0, np.float32(0), x) if relu else x
    with np.errstate(over="ignore"):
        out = x.astype(HALVES[kind])
    if mode == "rz":
        away = np.isfinite(x) & (np.abs(out.astype(np.float64)) > np.abs(x.astype(np.float64)))
        out = (bits(out) - away).astype(np.uint16).view(HALVES[kind])
    if finite:
        largest = HALVES[kind](float(FORMATS[kind].largest))
        out = np.where(np.isinf(out.astype(float)), np.copysign(largest, out), out)
    return out


HALF_MODIFIERS = [(r, s) for r in ("", ".relu") for s in ("", ".satfinite")]


@every("relu, finite", HALF_MODIFIERS)
@every("mode", ["rn", "rz"])
@every("kind", HALVES)
def test_cvt_float_to_half(kind, mode, relu, finite):
    x = around_halves(kind)
    found = run(f"cvt.{mode}{relu}{finite}.{kind}.f32 d, a;", d=HALVES[kind], a=x)
    expected = to_half(x, kind, mode, relu, finite)
    if relu:  # of zeros the sign is not specified
        found, expected = (np.where(v == 0, HALVES[kind](0), v) for v in (found, expected))
    assert_same(found, expected, kind)


@every("relu, finite", HALF_MODIFIERS)
@every("mode", ["rn", "rz"])
@every("kind", HALVES)
def test_cvt_pair_of_floats_to_halves(kind, mode, relu, finite):
    x = around_halves(kind)
    y = np.roll(x, 77)
    found = run(f"cvt.{mode}{relu}{finite}.{kind}x2.f32 d, a, b;", d=np.uint32, a=x, b=y)
    for part, value in ((found >> 16, x), (found & 0xFFFF, y)):
        part = part.astype(np.uint16).view(HALVES[kind])
        expected = to_half(value, kind, mode, relu, finite)
        if relu:
            part, expected = (np.where(v == 0, HALVES[kind](0), v) for v in (part, expected))
        assert_same(part, expected, kind)


NARROWINGS = [("f64", "f32", m) for m in ROUNDINGS] + [("f64", "f16", m) for m in ROUNDINGS]
NARROWINGS += [("f64", "bf16", "rn"), ("bf16", "f16", "rn"), ("f16", "bf16", "rn")]


def special_or_rounded(value, form, mode):
    return rounded(Fraction(value), form, mode) if math.isfinite(value) and value else value


@every("source, to, mode", NARROWINGS)
def test_cvt_narrows_with_one_rounding(source, to, mode):
    x = floats(source, count=1500)
    if source == "f64":
        y = floats(to, seed=3, count=500).astype(float)
        middle = (y + np.nextafter(y.astype(FORMATS[to].type), FORMATS[to].type(9))) / 2
        x = np.concatenate([x, y, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    found = run(f"cvt.{mode}.{to}.{source} d, a;", d=FORMATS[to].type, a=x)
    expected = [special_or_rounded(v, FORMATS[to], mode) for v in x.astype(float).tolist()]
    assert_same(found, expected, to)


@every("mode", ["rna", "rn", "rz"])
def test_cvt_to_tf32(mode):
    x = np.concatenate([floats("f32", count=1000), around_halves("f16")[::97]])
    found = run(f"cvt.{mode}.tf32.f32 d, a;", d=np.float32, a=x)
    assert_same(found, [special_or_rounded(v, TF32, mode) for v in x.tolist()], "f32")


FP8 = {
    "e4m3": (ml_dtypes.float8_e4m3fn, 448.0),
    "e5m2": (ml_dtypes.float8_e5m2, 57344.0),
}


def to_fp8(x, kind):
    dtype, largest = FP8[kind]
    out = np.clip(x.astype(np.float64), -largest, largest).astype(dtype)
    return np.where(np.isnan(x), np.uint8(0x7F), out.view(np.uint8)).astype(np.uint16)


@every("relu", ["", ".relu"])
@every("kind", FP8)
def test_cvt_to_fp8(kind, relu):
    x = np.concatenate([all_halves("f16").astype(np.float32), around_halves("f16")[::7]])
    y = np.roll(x, 1000)
    found = run(f"cvt.rn.satfinite{relu}.{kind}x2.f32 d, a, b;", d=np.uint16, a=x, b=y)
    if relu:
        x, y = (np.where(v <= 0, np.float32(0), v) for v in (x, y))
    np.testing.assert_array_equal(found, to_fp8(x, kind) << 8 | to_fp8(y, kind))


@every("kind", FP8)
def test_cvt_halves_to_fp8_and_back(kind):
    x = all_halves("f16")
    y = np.roll(x, 1000)
    both = bits(x).astype(np.uint32) << 16 | bits(y)
    found = run(f"cvt.rn.satfinite.{kind}x2.f16x2 d, a;", d=np.uint16, a=both)
    np.testing.assert_array_equal(found, to_fp8(x, kind) << 8 | to_fp8(y, kind))
    found = run(f"cvt.rn.f16x2.{kind}x2 d, a;", d=np.uint32, a=np.arange(65536, dtype=np.uint16))
    values = np.arange(256, dtype=np.uint8).view(FP8[kind][0]).astype(np.float16)
    assert_same((found >> 16).astype(np.uint16).view(np.float16), np.repeat(values, 256), "f16")
    assert_same((found & 0xFFFF).astype(np.uint16).view(np.float16), np.tile(values, 256), "f16")


def saturated(x):
    """.sat: to [0, 1], NaN to zero."""
    return np.where(np.isnan(x), 0, np.clip(x, 0, 1))


@every("kind", ["f16", "f32", "f64"])
def test_cvt_saturates_floats(kind):
    x = SOURCES[kind]
    found = run(f"cvt.sat.{kind}.{kind} d, a;", d=type_of(kind), a=x)
    np.testing.assert_array_equal(found, saturated(x))


@every("kind", ["f16", "f32", "f64"])
def test_cvt_saturates_what_was_an_integer(kind):
    x = np.array([-7, -1, 0, 1, 2, 2**31 - 1], np.int32)
    found = run(f"cvt.rn.sat.{kind}.s32 d, a;", d=type_of(kind), a=x)
    np.testing.assert_array_equal(found, [0, 0, 0, 1, 1, 1])


def flushed(x):
    """f32 with subnormals as zeros of their sign."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def test_cvt_flushes_where_told():
    x = SOURCES["f32"]
    assert_same(run("cvt.ftz.f64.f32 d, a;", d=np.float64, a=x), flushed(x), "f64")
    found = run("cvt.rpi.ftz.s32.f32 d, a;", d=np.int32, a=x)
    subnormal = (np.abs(x) < 2.0**-126) & (x != 0)
    assert subnormal.any() and not found[subnormal].any()
    y = SOURCES["f64"]
    found = run("cvt.rn.ftz.f32.f64 d, a;", d=np.float32, a=y)
    expected = flushed([special_or_rounded(v, F32, "rn") for v in y.tolist()])
    assert_same(found, expected, "f32")


@every("to, third", [("s16", False), ("u16", False), ("s8", True), ("u8", True)])
def test_cvt_pack(to, third):
    a, b, c = integer_tuples("s32", "s32", "u32")
    code = f"cvt.pack.sat.{to}.s32{'.b32' if third else ''} d, a, b{', c' if third else ''};"
    found = run(code, d=np.uint32, a=a, b=b, c=c)
    info = np.iinfo(INTEGERS[to])
    width, field = info.bits, (1 << info.bits) - 1

    def one(v):
        return min(max(v, info.min), info.max) & field

    expected = [
        one(x) << width | one(y) | (z << 2 * width if third else 0) for x, y, z in lanes(a, b, c)
    ]
    np.testing.assert_array_equal(found, wrapped(expected, "u32"))


# ---- integer arithmetic


def quotient(a, b):
    """Towards zero; by zero all ones."""
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a, b):
    return a if b == 0 else a - b * quotient(a, b)


WIDTHS = (16, 32, 64)
SIGNED = [f"s{w}" for w in WIDTHS]
NUMBERS = SIGNED + [f"u{w}" for w in WIDTHS]
ARITHMETIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "div": quotient,
    "rem": remainder,
    "min": min,
    "max": max,
}


@every("kind", NUMBERS)
@every("name", ARITHMETIC)
def test_integer_arithmetic(name, kind):
    a, b = integer_tuples(kind, kind)
    found = run(f"{name}.{kind} d, a, b;", d=type_of(kind), a=a, b=b)
    expected = wrapped((ARITHMETIC[name](x, y) for x, y in lanes(a, b)), kind)
    np.testing.assert_array_equal(found, expected)


@every("kind", NUMBERS)
def test_integer_arithmetic_of_three(kind):
    a, b, c = integer_tuples(kind, kind, kind)
    width = 8 * a.itemsize
    for name, formula in {
        "mad.lo": lambda a, b, c: a * b + c,
        "mad.hi": lambda a, b, c: (a * b >> width) + c,
        "sad": lambda a, b, c: abs(a - b) + c,
    }.items():
        found = run(f"{name}.{kind} d, a, b, c;", d=type_of(kind), a=a, b=b, c=c)
        np.testing.assert_array_equal(
            found, wrapped((formula(*row) for row in lanes(a, b, c)), kind), name
        )
    found = run(f"mul.hi.{kind} d, a, b;", d=type_of(kind), a=a, b=b)
    np.testing.assert_array_equal(found, wrapped((x * y >> width for x, y in lanes(a, b)), kind))


@every("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind):
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    a, b, c = integer_tuples(kind, kind, wide)
    found = run(f"mul.wide.{kind} d, a, b;", d=type_of(wide), a=a, b=b)
    np.testing.assert_array_equal(found, wrapped((x * y for x, y in lanes(a, b)), wide))
    found = run(f"mad.wide.{kind} d, a, b, c;", d=type_of(wide), a=a, b=b, c=c)
    np.testing.assert_array_equal(found, wrapped((x * y + z for x, y, z in lanes(a, b, c)), wide))


def low24(value, kind):
    value &= 0xFFFFFF
    return value - (1 << 24) if kind == "s32" and value >> 23 else value


@every("kind", ["s32", "u32"])
@every("part", ["lo", "hi"])
def test_products_of_24_bits(part, kind):
    a, b, c = integer_tuples(kind, kind, kind)
    shift = 16 if part == "hi" else 0
    products = [low24(x, kind) * low24(y, kind) >> shift for x, y in lanes(a, b)]
    found = run(f"mul24.{part}.{kind} d, a, b;", d=type_of(kind), a=a, b=b)
    np.testing.assert_array_equal(found, wrapped(products, kind))
    found = run(f"mad24.{part}.{kind} d, a, b, c;", d=type_of(kind), a=a, b=b, c=c)
    sums = [p + z for p, z in zip(products, c.tolist(), strict=True)]
    np.testing.assert_array_equal(found, wrapped(sums, kind))


@every("name, formula", [
    ("add.sat.s32 d, a, b;", lambda a, b, c: a + b),
    ("sub.sat.s32 d, a, b;", lambda a, b, c: a - b),
    ("mad.hi.sat.s32 d, a, b, c;", lambda a, b, c: (a * b >> 32) + c),
    ("mad24.hi.sat.s32 d, a, b, c;",
     lambda a, b, c: (low24(a, "s32") * low24(b, "s32") >> 16) + c),
])  # fmt: skip
def test_saturating_sums(name, formula):
    a, b, c = integer_tuples("s32", "s32", "s32")
    expected = [min(max(formula(*r), -(2**31)), 2**31 - 1) for r in lanes(a, b, c)]
    np.testing.assert_array_equal(run(name, d=np.int32, a=a, b=b, c=c), expected)


@every("kind", NUMBERS)
def test_integers_alone(kind):
    (a,) = integer_tuples(kind)
    width = 8 * a.itemsize
    names = {f"not.b{width}": lambda x: ~x, f"cnot.b{width}": lambda x: x == 0}
    if kind[0] == "s":
        names |= {f"neg.{kind}": lambda x: -x, f"abs.{kind}": abs}
    for name, formula in names.items():
        found = run(f"{name} d, a;", d=type_of(kind), a=a)
        np.testing.assert_array_equal(found, wrapped(map(formula, a.tolist()), kind), name)


@every("width", WIDTHS)
def test_logic(width):
    kind = f"u{width}"
    a, b = integer_tuples(kind, kind)
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        found = run(f"{name}.b{width} d, a, b;", d=type_of(kind), a=a, b=b)
        np.testing.assert_array_equal(found, function(a, b))


@every("name", ["add", "min", "max"])
@every("kind", ["s16", "u16"])
def test_packed_integers(kind, name):
    a, b = (v.view(np.uint16) for v in integer_tuples(kind, kind))
    found = run(f"{name}.{kind}x2 d, a, b;", d=np.uint32, a=a.view(np.uint32), b=b.view(np.uint32))
    rows = lanes(a.view(INTEGERS[kind]), b.view(INTEGERS[kind]))
    expected = wrapped((ARITHMETIC[name](x, y) for x, y in rows), kind)
    np.testing.assert_array_equal(found.view(INTEGERS[kind]), expected)


@every("name", ["min", "max"])
def test_integer_relu(name):
    a, b = integer_tuples("s32", "s32")
    found = run(f"{name}.relu.s32 d, a, b;", d=np.int32, a=a, b=b)
    expected = [max(ARITHMETIC[name](x, y), 0) for x, y in lanes(a, b)]
    np.testing.assert_array_equal(found, expected)


@every("b_kind", ["s32", "u32"])
@every("a_kind", ["s32", "u32"])
def test_dot_products(a_kind, b_kind):
    a, b, c = integer_tuples("u32", "u32", "s32")

    def parts(word, width, kind):
        raw = [word >> i & (1 << width) - 1 for i in range(0, 32, width)]
        return [r - (r >> width - 1 << width) if kind[0] == "s" else r for r in raw]

    for name, width, offset in (("dp4a", 8, 0), ("dp2a.lo", 16, 0), ("dp2a.hi", 16, 2)):
        found = run(f"{name}.{a_kind}.{b_kind} d, a, b, c;", d=np.int32, a=a, b=b, c=c)
        expected = []
        for x, y, z in lanes(a, b, c):
            pairs = zip(parts(x, width, a_kind), parts(y, 8, b_kind)[offset:], strict=False)
            expected.append(sum(p * q for p, q in pairs) + z)
        np.testing.assert_array_equal(found, wrapped(expected, "s32"), name)


@every("width", [32, 64])
def test_carry_chains(width):
    """Numbers of three words against Python's integers of any size."""
    kind, register = f"u{width}", type_of(f"u{width}")
    words = integer_tuples(*[kind] * 6, count=500)
    names = dict(zip("a0 a1 a2 b0 b1 b2".split(), words, strict=True))
    mask = (1 << width) - 1

    def value(row):
        return sum(w << width * i for i, w in enumerate(row))

    def check(code, formula):
        found = run(code, d0=register, d1=register, d2=register, **names)
        for row, out in zip(lanes(*words), lanes(*found), strict=True):
            expected = formula(value(row[:3]), value(row[3:]), row)
            assert list(out) == [expected >> width * i & mask for i in range(3)]

    for name, sign in (("add", 1), ("sub", -1)):
        check(
            f"{name}.cc.{kind} d0, a0, b0;{name}c.cc.{kind} d1, a1, b1;{name}c.{kind} d2, a2, b2;",
            lambda a, b, row, sign=sign: a + sign * b,
        )
    check(
        f"mad.lo.cc.{kind} d0, a0, b0, a1;madc.hi.cc.{kind} d1, a0, b0, a2;addc.{kind} d2, b1, 0;",
        lambda a, b, row: row[0] * row[3] + value((row[1], row[2], row[4])),
    )


def test_a_carry_that_nothing_gave_is_uninitialised():
    a = np.ones(32, np.uint32)
    with pytest.raises(EmulationError, match="uninitialised"):
        run("addc.u32 d, a, a;", d=np.uint32, a=a)
    found = run("add.cc.u32 d, a, a; addc.u32 d, a, a;", d=np.uint32, a=a)
    np.testing.assert_array_equal(found, 2)


# ---- shifts and bit fields


@every("width", WIDTHS)
def test_shifts(width):
    for name, kind in (("shl.b", "u"), ("shr.b", "u"), ("shr.u", "u"), ("shr.s", "s")):
        a, n = integer_tuples(f"{kind}{width}", "u32")
        n = np.where(np.arange(len(n)) % 4, n % (width + 3), n).astype(np.uint32)
        found = run(f"{name}{width} d, a, n;", d=a.dtype.type, a=a, n=n)
        expected = [x << min(s, width) if name == "shl.b" else x >> min(s, width)
                    for x, s in lanes(a, n)]  # fmt: skip
        np.testing.assert_array_equal(found, wrapped(expected, f"{kind}{width}"), name)


@every("mode", ["clamp", "wrap"])
def test_funnel_shifts(mode):
    low, high, n = integer_tuples("u32", "u32", "u32")
    n = np.where(np.arange(len(n)) % 4, n % 35, n).astype(np.uint32)
    by = np.minimum(n, 32) if mode == "clamp" else n % 32
    for way in "lr":
        found = run(f"shf.{way}.{mode}.b32 d, a, b, n;", d=np.uint32, a=low, b=high, n=n)
        both = [(h << 32 | x) for x, h in lanes(low, high)]
        expected = [v << s >> 32 if way == "l" else v >> s
                    for v, s in zip(both, by.tolist(), strict=True)]  # fmt: skip
        np.testing.assert_array_equal(found, wrapped(expected, "u32"))


@every("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind):
    width = int(kind[1:])
    a, b, position, length = integer_tuples(kind, kind, "u32", "u32", count=2000)
    top = width - 1

    def extract(x, pos, size):
        pos, size = pos & 255, size & 255
        sign = x >> min(pos + size - 1, top) & 1 if kind[0] == "s" and size else 0
        taken = [x >> pos + i & 1 if i < size and pos + i <= top else sign for i in range(width)]
        return sum(bit << i for i, bit in enumerate(taken))

    def insert(x, y, pos, size):
        pos, size = pos & 255, size & 255
        for i in range(size):
            if pos + i <= top:
                y = y & ~(1 << pos + i) | (x >> i & 1) << pos + i
        return y

    registers = {"a": a, "p": position, "n": length}
    found = run(f"bfe.{kind} d, a, p, n;", d=type_of(kind), **registers)
    expected = wrapped((extract(*row) for row in lanes(a, position, length)), kind)
    np.testing.assert_array_equal(found, expected)
    found = run(f"bfi.b{width} d, a, b, p, n;", d=type_of(kind), b=b, **registers)
    expected = wrapped((insert(*row) for row in lanes(a, b, position, length)), kind)
    np.testing.assert_array_equal(found, expected)


@every("width", [32, 64])
def test_bit_counts(width):
    kind = f"u{width}"
    (a,) = integer_tuples(kind)
    digits = [f"{x:0{width}b}" for x in a.tolist()]
    found = run(f"popc.b{width} d, a;", d=np.uint32, a=a)
    np.testing.assert_array_equal(found, [d.count("1") for d in digits])
    found = run(f"clz.b{width} d, a;", d=np.uint32, a=a)
    np.testing.assert_array_equal(found, [len(d) - len(d.lstrip("0")) for d in digits])
    found = run(f"brev.b{width} d, a;", d=type_of(kind), a=a)
    np.testing.assert_array_equal(found, wrapped((int(d[::-1], 2) for d in digits), kind))


@every("kind", ["u32", "s32", "u64", "s64"])
def test_bfind(kind):
    (a,) = integer_tuples(kind)
    highest = [(~x if x < 0 else x).bit_length() - 1 for x in a.tolist()]
    found = run(f"bfind.{kind} d, a;", d=np.uint32, a=a)
    np.testing.assert_array_equal(found, wrapped(highest, "u32"))
    top = int(kind[1:]) - 1
    found = run(f"bfind.shiftamt.{kind} d, a;", d=np.uint32, a=a)
    np.testing.assert_array_equal(
        found, wrapped([top - h if h >= 0 else -1 for h in highest], "u32")
    )


@every("mode", ["clamp", "wrap"])
def test_masks_and_extensions(mode):
    a, b = (np.where(np.arange(1000) % 3, v % 35, v) for v in integer_tuples("u32", "u32"))
    a, b = a.astype(np.uint32), b.astype(np.uint32)
    found = run(f"bmsk.{mode}.b32 d, a, b;", d=np.uint32, a=a, b=b)
    limit = (lambda v: min(v, 32)) if mode == "clamp" else (lambda v: v & 31)
    expected = [((1 << limit(y)) - 1) << limit(x) for x, y in lanes(a, b)]
    np.testing.assert_array_equal(found, wrapped(expected, "u32"))
    for kind in ("s32", "u32"):
        x = integer_tuples("u32")[0]
        found = run(f"szext.{mode}.{kind} d, x, b;", d=np.uint32, x=x, b=b)
        expected = []
        for value, count in lanes(x, b):
            size = limit(count)
            low = value & (1 << size) - 1
            negative = kind == "s32" and size and low >> size - 1
            expected.append(low - (1 << size) if negative else low)
        np.testing.assert_array_equal(found, wrapped(expected, "u32"))


# Byte numbers from the most significant down, for each value of c's low two bits (PTX ISA, prmt).
PERMUTATIONS = {
    "f4e": ["3210", "4321", "5432", "6543"],
    "b4e": ["5670", "6701", "7012", "0123"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["3210", "3211", "3222", "3333"],
    "ecr": ["0000", "1110", "2210", "3210"],
    "rc16": ["1010", "3232", "1010", "3232"],
}


@every("mode", ["", *PERMUTATIONS])
def test_prmt(mode):
    a, b, c = integer_tuples("u32", "u32", "u32")

    def expected(x, y, z):
        source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        if mode:
            return bytes(source[int(n)] for n in PERMUTATIONS[mode][z & 3][::-1])
        digits = [z >> 4 * i & 15 for i in range(4)]
        return bytes(source[n & 7] if n < 8 else 0xFF if source[n & 7] >> 7 else 0 for n in digits)

    found = run(f"prmt.b32{'.' + mode if mode else ''} d, a, b, c;", d=np.uint32, a=a, b=b, c=c)
    assert found.tobytes() == b"".join(expected(*row) for row in lanes(a, b, c))


def test_lop3_of_every_table():
    a, b, c = integer_tuples("u32", "u32", "u32", count=64)
    names = [f"d{i}" for i in range(256)]
    code = "\n".join(f"lop3.b32 d{i}, a, b, c, {i};" for i in range(256))
    found = run(code, **dict.fromkeys(names, np.uint32), a=a, b=b, c=c)
    unpacked = [np.unpackbits(v.view(np.uint8)) for v in (a, b, c)]
    index = unpacked[0] * 4 + unpacked[1] * 2 + unpacked[2]
    for table, out in enumerate(found):
        np.testing.assert_array_equal(np.unpackbits(out.view(np.uint8)), table >> index & 1)


def test_moves_between_registers_and_vectors():
    (a,) = integer_tuples("u64")
    low, high = run("mov.b64 {x, y}, a;", x=np.uint32, y=np.uint32, a=a)
    np.testing.assert_array_equal(low, a.astype(np.uint32))
    np.testing.assert_array_equal(high, (a >> 32).astype(np.uint32))
    np.testing.assert_array_equal(run("mov.b64 d, {x, y};", d=np.uint64, x=low, y=high), a)
    parts = run("mov.b64 {x, y, z, w}, a;", **dict.fromkeys("xyzw", np.uint16), a=a)
    np.testing.assert_array_equal(np.stack(parts, 1).ravel(), a.view(np.uint16))
    quarters = dict(zip("xyzw", parts, strict=True))
    np.testing.assert_array_equal(run("mov.b64 d, {x, y, z, w};", d=np.uint64, **quarters), a)


# ---- comparison and selection

ORDER = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip
UNSIGNED_ORDER = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def compared(name, a, b):
    """By Python's own comparison of numbers; the ISA's ordered and unordered forms of floats."""
    a, b = a.tolist(), b.tolist()
    nan = [x != x or y != y for x, y in zip(a, b, strict=True)]
    if name in ("num", "nan"):
        return np.array(nan) == (name == "nan")
    base = UNSIGNED_ORDER.get(name, name[:2])
    holds = [ORDER[base](x, y) for x, y in zip(a, b, strict=True)]
    if name.endswith("u") and len(name) == 3:
        return np.array(holds) | np.array(nan)
    return np.array(holds) & ~np.array(nan)


def names_of(kind):
    if kind[0] == "b" and kind != "bf16":
        return ["eq", "ne"]
    if kind in FORMATS:
        return [*ORDER, *(n + "u" for n in ORDER), "num", "nan"]
    return [*ORDER, *(UNSIGNED_ORDER if kind[0] == "u" else ())]


def comparable(kind, count=1500):
    """Two columns with many equal pairs."""
    name = kind.replace("b", "u") if kind in ("b16", "b32", "b64") else kind
    if name in FORMATS:
        a, b = float_tuples(name, 2, count)
    else:
        a, b = integer_tuples(name, name, count=count)
    return a, np.where(np.arange(len(a)) % 3 == 0, a, b).astype(a.dtype)


COMPARED = [*NUMBERS, "b16", "b32", "b64", *FORMATS]


@every("kind", COMPARED)
def test_setp_and_set(kind):
    a, b = comparable(kind)
    c = np.random.default_rng(1).random(len(a)) < 0.5
    for name in names_of(kind):
        holds = compared(name, a, b)
        p, q = run(f"setp.{name}.{kind} p|q, a, b;", p=bool, q=bool, a=a, b=b)
        np.testing.assert_array_equal(p, holds, name)
        np.testing.assert_array_equal(q, ~holds, name)
        for mix, function in (
            ("and", np.logical_and),
            ("or", np.logical_or),
            ("xor", np.not_equal),
        ):
            code = f"setp.{name}.{mix}.{kind} p|q, a, b, !c;"
            p, q = run(code, p=bool, q=bool, a=a, b=b, c=c)
            np.testing.assert_array_equal(p, function(holds, ~c), name + mix)
            np.testing.assert_array_equal(q, function(~holds, ~c), name + mix)
        found = run(f"set.{name}.u32.{kind} d, a, b;", d=np.uint32, a=a, b=b)
        np.testing.assert_array_equal(found, np.where(holds, 0xFFFFFFFF, 0))
        found = run(f"set.{name}.or.f32.{kind} d, a, b, c;", d=np.float32, a=a, b=b, c=c)
        np.testing.assert_array_equal(found, (holds | c).astype(np.float32))


@every("kind", HALVES)
def test_setp_and_set_of_pairs(kind):
    a, b = (v[: len(v) // 2 * 2] for v in comparable(kind))
    packed = {"a": a.view(np.uint32), "b": b.view(np.uint32)}
    c = np.random.default_rng(1).random(len(a) // 2) < 0.5
    one = HALVES[kind](1).view(np.uint16)
    for name in names_of(kind):
        holds = compared(name, a, b).reshape(-1, 2)
        p, q = run(f"setp.{name}.and.{kind}x2 p|q, a, b, c;", p=bool, q=bool, c=c, **packed)
        np.testing.assert_array_equal(np.stack([p, q], 1), holds & c[:, None], name)
        found = run(f"set.{name}.{kind}x2.{kind}x2 d, a, b;", d=np.uint32, **packed)
        np.testing.assert_array_equal(found.view(np.uint16), holds.ravel() * one)
        found = run(f"set.{name}.u32.{kind}x2 d, a, b;", d=np.uint32, **packed)
        np.testing.assert_array_equal(found.view(np.uint16), holds.ravel() * np.uint16(0xFFFF))


def test_comparison_flushes_where_told():
    tiny = np.array([1e-40, -1e-40, 1e-40, 1e-30], np.float32)
    zero = np.zeros(4, np.float32)
    p, q = run("setp.gt.ftz.f32 p, a, b; setp.gt.f32 q, a, b;", p=bool, q=bool, a=tiny, b=zero)
    np.testing.assert_array_equal(p, [False, False, False, True])
    np.testing.assert_array_equal(q, [True, False, True, True])


@every("width", WIDTHS)
def test_selection(width):
    kind = f"u{width}"
    a, b = integer_tuples(kind, kind)
    c = np.random.default_rng(0).random(len(a)) < 0.5
    found = run(f"selp.b{width} d, a, b, c;", d=type_of(kind), a=a, b=b, c=c)
    np.testing.assert_array_equal(found, np.where(c, a, b))
    (s,) = integer_tuples("s32")
    found = run(f"slct.{kind}.s32 d, a, b, s;", d=type_of(kind), a=a, b=b, s=s)
    np.testing.assert_array_equal(found, np.where(s >= 0, a, b))
    f = np.resize(floats("f32"), len(a))
    found = run(f"slct.{kind}.f32 d, a, b, f;", d=type_of(kind), a=a, b=b, f=f)
    np.testing.assert_array_equal(found, np.where(f >= 0, a, b))


@every("name, function", [
    ("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor),
])  # fmt: skip
def test_predicate_logic(name, function):
    a, b = np.random.default_rng(0).random((2, 100)) < 0.5
    np.testing.assert_array_equal(run(f"{name}.pred d, a, b;", d=bool, a=a, b=b), function(a, b))
    np.testing.assert_array_equal(run(f"{name}.pred d, !a, b;", d=bool, a=a, b=b), function(~a, b))
    np.testing.assert_array_equal(run("not.pred d, a;", d=bool, a=a), ~a)
    np.testing.assert_array_equal(run("mov.pred d, a;", d=bool, a=a), a)


@every("kind", ["f32", "f64"])
def test_testp(kind):
    x = floats(kind)
    magnitude, least = np.abs(x), FORMATS[kind].type(float(FORMATS[kind].least_normal))
    for name, expected in {
        "finite": np.isfinite(x),
        "infinite": np.isinf(x),
        "number": ~np.isnan(x),
        "notanumber": np.isnan(x),
        "normal": np.isfinite(x) & (magnitude >= least),
        "subnormal": (magnitude > 0) & (magnitude < least),
    }.items():
        found = run(f"testp.{name}.{kind} d, a;", d=bool, a=x)
        np.testing.assert_array_equal(found, expected, name)


# ---- floating-point arithmetic


def ieee(formula, operands, form, mode):
    """The formula in rationals rounded once; zeros, infinities and NaN by IEEE's rules in f64."""
    if not all(map(math.isfinite, operands)):
        with np.errstate(all="ignore"):
            return float(formula(*map(np.float64, operands)))
    if formula is DIVIDE and operands[1] == 0:
        with np.errstate(all="ignore"):
            return float(np.float64(operands[0]) / np.float64(operands[1]))
    exact = formula(*map(Fraction, operands))
    return rounded(exact, form, mode) if exact else zero_of(formula, operands, mode)


def zero_of(formula, operands, mode):
    """The sign of an exact zero: that of a product, of equal terms, else by the rounding."""
    signs = [math.copysign(1, x) for x in operands]
    if formula in (MULTIPLY, DIVIDE):
        return math.copysign(0.0, signs[0] * signs[1])
    terms = {ADD: signs, SUBTRACT: [signs[0], -signs[-1]]}.get(formula)
    if terms is None:
        terms = [signs[0] * signs[1], signs[2]]
        if operands[0] * operands[1] and operands[2]:
            terms = [1, -1]  # terms that cancel
    elif operands[0]:
        terms = [1, -1]
    if terms[0] == terms[1]:
        return math.copysign(0.0, terms[0])
    return -0.0 if mode == "rm" else 0.0


ADD, SUBTRACT, MULTIPLY, DIVIDE, FUSED = (
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b,
    lambda a, b, c: a * b + c,
)  # fmt: skip
FORMULAS = {"add": ADD, "sub": SUBTRACT, "mul": MULTIPLY, "div": DIVIDE, "fma": FUSED}


def expected_arithmetic(name, columns, form, mode):
    rows = zip(*(c.astype(float).tolist() for c in columns), strict=True)
    return np.array([ieee(FORMULAS[name], row, form, mode) for row in rows])


def operands_of(name, kind, count):
    columns = float_tuples(kind, 3 if name == "fma" else 2, count)
    return columns, dict(zip("abc", columns, strict=False))


@every("mode", ROUNDINGS)
@every("kind", ["f32", "f64"])
@every("name", FORMULAS)
def test_float_arithmetic(name, kind, mode):
    columns, registers = operands_of(name, kind, 400)
    form = FORMATS[kind]
    code = f"{name}.{mode}.{kind} d, {', '.join(registers)};"
    found = run(code, d=form.type, **registers)
    assert_same(found, expected_arithmetic(name, columns, form, mode), kind)


@every("name", FORMULAS)
def test_float_arithmetic_flushes_and_saturates(name):
    columns, registers = operands_of(name, "f32", 400)
    names = ", ".join(registers)
    flat = [flushed(c) for c in columns]
    for mode in ("rn", "rz"):
        expected = flushed(expected_arithmetic(name, flat, F32, mode))
        found = run(f"{name}.{mode}.ftz.f32 d, {names};", d=np.float32, **registers)
        assert_same(found, expected, "f32")
    if name != "div":
        expected = saturated(expected_arithmetic(name, columns, F32, "rn"))
        found = run(f"{name}.rn.sat.f32 d, {names};", d=np.float32, **registers)
        np.testing.assert_array_equal(found, expected.astype(np.float32))


@every("kind", HALVES)
@every("name", ["add", "sub", "mul", "fma"])
def test_half_arithmetic(name, kind):
    columns, registers = operands_of(name, kind, 3000)
    form, names = FORMATS[kind], ", ".join(registers)
    expected = expected_arithmetic(name, columns, form, "rn")
    found = run(f"{name}.rn.{kind} d, {names};", d=form.type, **registers)
    assert_same(found, expected, kind)
    pairs = {n: v[: len(v) // 2 * 2].view(np.uint32) for n, v in registers.items()}
    found = run(f"{name}.rn.{kind}x2 d, {names};", d=np.uint32, **pairs)
    assert_same(found.view(form.type), expected[: 2 * len(found)], kind)


def test_half_modifiers():
    columns, registers = operands_of("fma", "f16", 3000)
    flat = [np.where(np.abs(c) < 2.0**-14, np.copysign(np.float16(0), c), c) for c in columns]
    expected = expected_arithmetic("fma", flat, F16, "rn")
    expected = np.where(np.abs(expected) < 2.0**-14, np.copysign(0.0, expected), expected)
    assert_same(run("fma.rn.ftz.f16 d, a, b, c;", d=np.float16, **registers), expected, "f16")
    plain = expected_arithmetic("fma", columns, F16, "rn")
    found = run("fma.rn.sat.f16 d, a, b, c;", d=np.float16, **registers)
    np.testing.assert_array_equal(found, saturated(plain).astype(np.float16))
    for kind in HALVES:
        columns, registers = operands_of("fma", kind, 1000)
        plain = expected_arithmetic("fma", columns, FORMATS[kind], "rn")
        found = run(f"fma.rn.relu.{kind} d, a, b, c;", d=HALVES[kind], **registers)
        expected = np.where(plain <= 0, 0.0, plain).astype(HALVES[kind])
        assert_same(np.where(found == 0, HALVES[kind](0), found), expected, kind)


@every("kind", HALVES)
@every("name", [
    "sub.rn", "mul.rn", "fma.rn.relu", "min", "max.NaN", "min.xorsign.abs", "abs", "neg",
])  # fmt: skip
def test_pairs_do_what_halves_do(name, kind):
    count = {"fma": 3, "abs": 1, "neg": 1}.get(name[:3], 2)
    rng = np.random.default_rng(0)
    halves = {n: rng.permutation(all_halves(kind)) for n in "abc"[:count]}
    code = f"d, {', '.join(halves)};"
    single = run(f"{name}.{kind} {code}", d=np.uint16, **halves)
    pairs = {n: v.view(np.uint32) for n, v in halves.items()}
    pair = run(f"{name}.{kind}x2 {code}", d=np.uint32, **pairs)
    np.testing.assert_array_equal(pair.view(np.uint16), single)


def extreme(name, a, b, nan_wins=False, xorsign=False):
    """min and max of two Python floats by the ISA's rules for NaN and signed zeros."""
    if nan_wins and (a != a or b != b):
        return math.nan
    if xorsign:
        sign = math.copysign(1, a) * math.copysign(1, b)
        return math.copysign(extreme(name, abs(a), abs(b)), sign)
    if a != a or b != b:
        return b if a != a else a
    return (min if name == "min" else max)(a, b, key=lambda x: (x, math.copysign(1, x)))


EXTREMES = [("f64", "")] + [
    (kind, modifiers)
    for kind in ("f32", "f16", "bf16")
    for modifiers in ("", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs")
]


@every("kind, modifiers", EXTREMES)
@every("name", ["min", "max"])
def test_float_extremes(name, kind, modifiers):
    a, b = float_tuples(kind, 2)
    found = run(f"{name}{modifiers}.{kind} d, a, b;", d=FORMATS[kind].type, a=a, b=b)
    how = {"nan_wins": ".NaN" in modifiers, "xorsign": ".xorsign" in modifiers}
    expected = [extreme(name, x, y, **how) for x, y in lanes(a.astype(float), b.astype(float))]
    assert_same(found, np.array(expected), kind)


@every("kind", FORMATS)
def test_signs(kind):
    x = floats(kind)
    x = x[~np.isnan(x.astype(float))]
    assert_same(run(f"abs.{kind} d, a;", d=x.dtype.type, a=x), np.abs(x), kind)
    assert_same(run(f"neg.{kind} d, a;", d=x.dtype.type, a=x), -x, kind)
    if kind in ("f32", "f64"):
        y = np.roll(x, 5)
        found = run(f"copysign.{kind} d, a, b;", d=x.dtype.type, a=x, b=y)
        assert_same(found, np.copysign(y, x), kind)
    if kind == "f32":
        assert_same(run("neg.ftz.f32 d, a;", d=np.float32, a=x), -flushed(x), kind)


@every("mode", ROUNDINGS)
@every("kind", ["f32", "f64"])
def test_roots_and_reciprocals(kind, mode):
    x, form = floats(kind), FORMATS[kind]
    found = run(f"rcp.{mode}.{kind} d, a;", d=form.type, a=x)
    expected = [ieee(DIVIDE, (1.0, v), form, mode) for v in x.astype(float).tolist()]
    assert_same(found, expected, kind)
    found = run(f"sqrt.{mode}.{kind} d, a;", d=form.type, a=x)
    expected = [
        rounded_root(Fraction(v), form, mode) if 0 < v < math.inf else v if v >= 0 else math.nan
        for v in x.astype(float).tolist()
    ]
    assert_same(found, expected, kind)


# Relative, absolute error and range of the approximations (PTX ISA, each instruction's table).
APPROXIMATIONS = {
    "ex2": (np.exp2, 2**-22.5 + 2**-24, 0, (-120, 120)),
    "lg2": (np.log2, 2**-22, 2**-22, (2**-20, 2**20)),
    "sin": (np.sin, 0, 2**-20.5, (-math.pi, math.pi)),
    "cos": (np.cos, 0, 2**-20.5, (-math.pi, math.pi)),
    "tanh": (np.tanh, 2**-11, 0, (-9, 9)),
    "rcp": (np.reciprocal, 2**-23, 0, (2**-20, 2**20)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2**-22.9, 0, (2**-20, 2**20)),
    "sqrt": (np.sqrt, 2**-23, 0, (0, 2**20)),
}


@every("name", APPROXIMATIONS)
def test_approximations(name):
    function, relative, absolute, (low, high) = APPROXIMATIONS[name]
    x = np.random.default_rng(0).uniform(low, high, 5000).astype(np.float32)
    found = run(f"{name}.approx.f32 d, a;", d=np.float32, a=x).astype(float)
    expected = function(x.astype(float))
    assert (np.abs(found - expected) <= relative * np.abs(expected) + absolute).all()


def test_approximations_at_the_edges():
    inf, nan = math.inf, math.nan
    edges = {
        "ex2": [(-inf, 0.0), (inf, inf), (nan, nan), (0.0, 1.0), (-130.0, 2.0**-130)],
        "lg2": [(0.0, -inf), (inf, inf), (-1.0, nan), (1.0, 0.0)],
        "rcp": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0)],
        "rsqrt": [(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, nan)],
        "sqrt": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1.0, nan)],
    }
    for name, rows in edges.items():
        x, expected = np.array(rows, np.float32).T
        found = run(f"{name}.approx.f32 d, a;", d=np.float32, a=x.copy())
        assert_same(found, expected, "f32")
    tiny = np.array([2.0**-130, -(2.0**-130)], np.float32)
    found = run("rcp.approx.ftz.f32 d, a;", d=np.float32, a=tiny)
    np.testing.assert_array_equal(found, [inf, -inf])
    found = run("ex2.approx.ftz.f32 d, a;", d=np.float32, a=np.array([-130.0], np.float32))
    np.testing.assert_array_equal(found, [0.0])


@every("kind, name, relative, absolute", [
    ("f16", "ex2", 2**-9.9, 2**-24), ("f16", "tanh", 2**-10.987, 2**-24),
    ("bf16", "ex2", 2**-7, 0), ("bf16", "tanh", 2**-8, 0),
])  # fmt: skip
def test_half_approximations(kind, name, relative, absolute):
    x = all_halves(kind)
    x = x[(np.abs(x.astype(float)) < 14) & (np.abs(x.astype(float)) > 2.0**-100)]
    x = x[: len(x) // 2 * 2]
    flush = ".ftz" if (kind, name) == ("bf16", "ex2") else ""
    found = run(f"{name}.approx{flush}.{kind} d, a;", d=HALVES[kind], a=x).astype(float)
    expected = APPROXIMATIONS[name][0](x.astype(float))
    assert (np.abs(found - expected) <= relative * np.abs(expected) + absolute).all()
    code = f"{name}.approx{flush}.{kind}x2 d, a;"
    pairs = run(code, d=np.uint32, a=x.view(np.uint32)).view(HALVES[kind]).astype(float)
    np.testing.assert_array_equal(pairs, found)


# ---- what lanes exchange

LANES = np.arange(32)


def shuffled(mode, lane, b, c):
    """Source lane and whether it is in range (PTX ISA, shfl)."""
    segment = c >> 8 & 31
    limit, low, n = lane & segment | c & 31 & ~segment, lane & segment, b & 31
    place = {"up": lane - n, "down": lane + n, "bfly": lane ^ n, "idx": low | n & ~segment}[mode]
    inside = place >= limit if mode == "up" else place <= limit
    return (place if inside else lane), inside


@every("width", [32, 16, 8, 4, 2, 1])
@every("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode, width):
    rng = np.random.default_rng(width)
    a = rng.integers(0, 2**32, 32).astype(np.uint32)
    for clamp in {0 if mode == "up" else 31, 5}:
        for b in (rng.integers(0, 40, 32), np.full(32, 1), np.full(32, width // 2)):
            b = b.astype(np.uint32)
            c = (32 - width) << 8 | clamp
            d, p = run(f"shfl.sync.{mode}.b32 d|p, a, b, {c}, -1;", d=np.uint32, p=bool, a=a, b=b)
            rows = [shuffled(mode, i, int(b[i]), c) for i in range(32)]
            np.testing.assert_array_equal(d, a[[r[0] for r in rows]])
            np.testing.assert_array_equal(p, [r[1] for r in rows])


PARTIAL = 0b1010_0110_0000_1111_0011_0101_1000_0001
MEMBERS = (PARTIAL >> LANES & 1).astype(bool)


def among_members(code, **registers):
    """The code on the lanes of PARTIAL only; outputs of the others are left at zero."""
    outputs = [n for n, v in registers.items() if isinstance(v, type)]
    clear = "".join(
        f"setp.ne.u32 {n}, 0, 0; " if registers[n] is bool else f"mov.b32 {n}, 0; " for n in outputs
    )
    code = f"{clear} @!in bra SKIP; {code} SKIP:"
    return run(code, **registers, **{"in": MEMBERS})


def test_shfl_among_some_lanes():
    a = np.arange(100, 132).astype(np.uint32)
    source = np.random.default_rng(0).choice(LANES[MEMBERS], 32).astype(np.uint32)
    found = among_members(f"shfl.sync.idx.b32 d, a, b, 31, {PARTIAL};", d=np.uint32, a=a, b=source)
    np.testing.assert_array_equal(found, np.where(MEMBERS, a[source], 0))


def test_shfl_from_a_lane_that_is_absent_is_a_fault():
    absent = int(LANES[~MEMBERS][0])
    with pytest.raises(EmulationError, match=f"reads lane {absent}, which does not take part"):
        among_members(f"shfl.sync.idx.b32 d, a, {absent}, 31, {PARTIAL};",
                      d=np.uint32, a=LANES.astype(np.uint32))  # fmt: skip


@every("pattern", [0, 0xFFFFFFFF, PARTIAL, ~PARTIAL & 0xFFFFFFFF, 1 << 7, 0x0F0F1234])
def test_vote(pattern):
    votes = (pattern >> LANES & 1).astype(bool)
    code = (
        "vote.sync.all.pred p, v, {m}; vote.sync.any.pred q, v, {m}; vote.sync.uni.pred r, v, {m};"
        "vote.sync.ballot.b32 d, v, {m}; vote.sync.all.pred s, !v, {m};"
    )
    outputs = {"p": bool, "q": bool, "r": bool, "s": bool, "d": np.uint32}
    for runner, members in ((run, np.full(32, True)), (among_members, MEMBERS)):
        mask = int((members << LANES).sum())
        p, q, r, s, d = runner(code.format(m=mask), **outputs, v=votes)
        cast = votes[members]
        np.testing.assert_array_equal(p, members & cast.all())
        np.testing.assert_array_equal(q, members & cast.any())
        np.testing.assert_array_equal(r, members & (cast.all() or not cast.any()))
        np.testing.assert_array_equal(s, members & (not cast.any()))
        np.testing.assert_array_equal(d, np.where(members, pattern & mask, 0))


@every("width", [32, 64])
def test_match(width):
    rng = np.random.default_rng(0)
    for a in (rng.integers(0, 4, 32), np.full(32, 7), LANES):
        a = (a.astype(f"u{width // 8}")) << (width - 8)
        for runner, members in ((run, np.full(32, True)), (among_members, MEMBERS)):
            mask = int((members << LANES).sum())
            d, e, p = runner(
                f"match.any.sync.b{width} d, a, {mask}; match.all.sync.b{width} e|p, a, {mask};",
                d=np.uint32, e=np.uint32, p=bool, a=a,
            )  # fmt: skip
            alike = [(((a == x) & members) << LANES).sum() for x in a]
            np.testing.assert_array_equal(d, np.where(members, alike, 0))
            same = len(set(a[members].tolist())) == 1
            np.testing.assert_array_equal(e, np.where(members & same, mask, 0))
            np.testing.assert_array_equal(p, members & same)


REDUCTIONS = {
    "add.u32": np.add, "add.s32": np.add, "min.u32": np.minimum, "max.u32": np.maximum,
    "min.s32": np.minimum, "max.s32": np.maximum, "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or, "xor.b32": np.bitwise_xor,
}  # fmt: skip


@every("name", REDUCTIONS)
def test_redux(name):
    kind = np.int32 if "s32" in name else np.uint32
    a = np.random.default_rng(0).integers(0, 2**32, 32).astype(np.uint32).view(kind)
    for runner, members in ((run, np.full(32, True)), (among_members, MEMBERS)):
        mask = int((members << LANES).sum())
        found = runner(f"redux.sync.{name} d, a, {mask};", d=kind, a=a)
        expected = REDUCTIONS[name].reduce(a[members], dtype=kind)
        np.testing.assert_array_equal(found, np.where(members, expected, 0))


def test_activemask_and_elect():
    for runner, members in ((run, np.full(32, True)), (among_members, MEMBERS)):
        mask = int((members << LANES).sum())
        d, e, p = runner(
            f"activemask.b32 d; elect.sync e|p, {mask};",
            d=np.uint32, e=np.uint32, p=bool, v=LANES.astype(np.uint32),
        )  # fmt: skip
        leader = int(LANES[members][0])
        np.testing.assert_array_equal(d, np.where(members, mask, 0))
        np.testing.assert_array_equal(e, np.where(members, leader, 0))
        np.testing.assert_array_equal(p, leader == LANES)


# ---- what is not known is refused

REFUSED = re.split(
    r"\n|\|(?=\w+\.)",
    """\
add.ftz.s32 d, a, b|add.rz.f16 h, h, h|add.sat.f64 x, x, x|add.ftz.f64 x, x, x|add.rn.s32 d, a, b
add.sat.u32 d, a, b|add.cc.s16 h, h, h|add.ftz.bf16 h, h, h|mul.lo.ftz.s32 d, a, b|mul.s32 d, a, b
mul.wide.s64 x, x, x|mul.hi.lo.s32 d, a, b|mad.lo.sat.s32 d, a, b, c|fma.rn.sat.bf16 h, h, h, h
fma.rn.relu.f32 d, a, b, c|fma.rn.sat.relu.f16 h, h, h, h|fma.rn.oob.f16 h, h, h, h
div.approx.f64 x, x, x|sin.approx.f64 x, x|sin.approx.sat.f32 d, a|rcp.approx.ftz.f64 x, x
min.relu.u32 d, a, b|min.NaN.s32 d, a, b|min.xorsign.f32 d, a, b|max.f32 d, a, b, c|and.s32 d, a, b
shl.s32 d, a, b|shr.wrap.u32 d, a, b|shf.l.b32 d, a, b, c|shf.l.r.wrap.b32 d, a, b, c
bfe.b32 d, a, b, c|popc.s32 d, a|clz.b16 d, h|bfind.b32 d, a|prmt.b32.f5e d, a, b, c
lop3.or.b32 d|p, a, b, c, 3, q|lop3.b64 x, x, x, x, 3|dp4a.s32.s8 d, a, b, c
dp2a.s32.s32 d, a, b, c|setp.lt.b32 p, a, b|setp.lo.s32 p, a, b|setp.equ.s32 p, a, b
setp.eq.ftz.s32 p, a, b|setp.eq.ftz.f64 p, x, x|setp.eq.f16x2 p, a, b|setp.xx.s32 p, a, b
set.eq.f64.s32 x, a, b|set.eq.s32 d, a, b|selp.sat.b32 d, a, b, p|mov.sat.b32 d, a|neg.u32 d, a
cvt.s32.f32 d, a|cvt.rn.s32.f32 d, a|cvt.f32.s32 d, a|cvt.rni.f32.s32 d, a|cvt.rn.f64.f32 x, a
cvt.f32.f64 d, x|cvt.rn.relu.f32.f64 d, x|cvt.rn.satfinite.f32.f64 d, x|cvt.rn.ftz.f16.f64 h, x
cvt.rn.e4m3x2.f32 h, a, b|cvt.rz.satfinite.e4m3x2.f32 h, a, b|cvt.rs.f16x2.f32 d, a, b, c
cvt.rn.sat.f16x2.f32 d, a, b|cvt.rm.tf32.f32 d, a|cvt.rna.f16.f32 h, a|cvt.rn.f32.e4m3 d, a
cvt.pack.sat.u16.s32.b32 d, a, b, c|cvt.pack.s8.s32.b32 d, a, b, c|cvt.foo.s32.s32 d, a
shfl.up.b32 d, a, b, c|shfl.sync.up.b64 d, a, b, c, -1|vote.sync.all.b32 d, p, -1
vote.ballot.b32 d, p|match.sync.b32 d, a, -1|match.any.sync.b32 d|p, a, -1
redux.sync.add.b32 d, a, -1
redux.sync.min.f32 d, a, -1|redux.sync.and.s32 d, a, -1|activemask.u32 d|elect.b32 d|p, -1
mma.sync.aligned.m16n8k8.row.col.f32.f16.bf16.f32 {d, d, d, d}, {a, a}, {b}, {c, c, c, c}
mma.sync.aligned.m16n8k8.row.col.satfinite.f32.f16.f16.f32 {d, d, d, d}, {a, a}, {b}, {c, c, c, c}
mma.sync.aligned.m16n8k8.col.row.f32.f16.f16.f32 {d, d, d, d}, {a, a}, {b}, {c, c, c, c}
mma.sync.m16n8k8.row.col.f32.f16.f16.f32 {d, d, d, d}, {a, a}, {b}, {c, c, c, c}
mma.sync.aligned.m16n8k8.row.col.f16.bf16.bf16.f16 {d, d}, {a, a}, {b}, {c, c}
mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {d, d, d, d}, {a, a, a, a}, {b}, {c, c, c, c}
mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {x, x, x, x}, {x, x}, {x}, {x, x, x, x}
mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.xor.popc {d, d, d, d}, {a, a}, {b}, {c, c}""",
)


@every("code", REFUSED)
def test_what_is_not_known_is_refused(code):
    registers = {n: (32, False) for n in "abcd"} | {"h": (16, False), "x": (64, False)}
    registers |= {"p": (1, False), "q": (1, False), "out": (32, True)}
    ptx = text(f"mov.u32 out, 0;\n{code};", registers)
    line = 1 + ptx[: ptx.index(code)].count("\n")
    module = Module(ptx)
    opcode = code.split()[0]
    assert module.unknown("kernel") == [f"{line} {opcode}"]
    arrays = [np.ones(32, f"u{max(bits, 32) // 8}") for bits, _ in registers.values()]
    with pytest.raises(EmulationError) as failure:
        module.launch("kernel", 1, 32, [*arrays, 32])
    assert opcode in str(failure.value) and f"line {line}" in str(failure.value)
