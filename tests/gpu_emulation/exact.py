"""Floating-point results from the definition: an exact rational, rounded once by integer rules."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import ml_dtypes
import numpy as np


class Format(NamedTuple):
    """A binary format: its type in numpy, bits after the point, least and largest exponent."""

    type: type
    mantissa: int
    low: int
    high: int

    @property
    def largest(self) -> Fraction:
        return (2 - Fraction(1, 2**self.mantissa)) * Fraction(2) ** self.high

    @property
    def least_normal(self) -> Fraction:
        return Fraction(2) ** self.low


F16 = Format(np.float16, 10, -14, 15)
BF16 = Format(ml_dtypes.bfloat16, 7, -126, 127)
TF32 = Format(np.float32, 10, -126, 127)
F32 = Format(np.float32, 23, -126, 127)
F64 = Format(np.float64, 52, -1022, 1023)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


def _quotient(value: Fraction, mode: str) -> int:
    """value as an integer: rn, rz, rm, rp, or rna (to nearest, ties away)."""
    floor = math.floor(value)
    rest = value - floor
    if not rest:
        return floor
    if mode == "rn":
        return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2))
    if mode == "rna":
        return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor >= 0))
    up = mode == "rp" or (mode == "rz" and value < 0)
    return floor + up


def rounded(value: Fraction, form: Format, mode: str = "rn") -> float:
    """The format's value for a rational other than zero; a result of zero keeps the sign."""
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, form.low) - form.mantissa)
    out = _quotient(value / unit, mode) * unit
    if abs(out) > form.largest:
        to_infinity = mode in ("rn", "rna") or mode == ("rp" if value > 0 else "rm")
        out = math.inf if to_infinity else form.largest
    return math.copysign(float(abs(out)), -1 if value < 0 else 1)


def rounded_root(value: Fraction, form: Format, mode: str) -> float:
    """The square root of a positive rational, by comparing squares."""
    guess = form.type(math.sqrt(value))
    while Fraction(float(guess)) ** 2 > value:
        guess = np.nextafter(guess, form.type(0))
    above = np.nextafter(guess, form.type(np.inf))
    while Fraction(float(above)) ** 2 <= value:
        guess, above = above, np.nextafter(above, form.type(np.inf))
    low, high = Fraction(float(guess)), Fraction(float(above))
    if low**2 == value or mode in ("rz", "rm"):
        return float(guess)
    if mode == "rp":
        return float(above)
    return float(guess if value < ((low + high) / 2) ** 2 else above)
