"""What a run of an oracle is judged by: its error against float64, as a share of a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..counters import Counters


@dataclass(frozen=True)
class Outcome:
    """Counters of the launch, and the largest error against float64 as a share of its bound."""

    counters: Counters
    error: float


def error_bound(a, b):
    """Sum of |a||b| times fp32's unit, for a sum in any order."""
    return (np.abs(a) @ np.abs(b)) * 2.0**-23 * 2 + 1e-30


def share_of_bound(actual, exact, bound) -> float:
    """The largest error as a share of its bound; infinite for NaN and a missed bound of 0."""
    error = np.abs(actual.astype(float) - exact)
    share = np.divide(error, bound, out=np.where(error == 0, 0.0, np.inf), where=bound != 0)
    return float(np.where(np.isnan(share), np.inf, share).max())
