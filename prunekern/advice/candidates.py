"""What may be done to a layer: a pattern with its sparsity, and the storages that can hold it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prunekern.formats import FORMATS
from prunekern.pruning.masks import parse_pattern
from prunekern.timing import EXACT, ROUNDED

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Candidate:
    """One thing that may be done to a layer.

    Attributes:
        pattern: "N:M" or "unstructured".
        sparsity: Share of zeros.
        rounded: The storage that rounds the kept weights, or "" where they stay as they are.
    """

    pattern: str
    sparsity: float
    rounded: str = ""

    @property
    def name(self) -> str:
        """As `parse` reads it: "2:4", "50%", "2:4-int8"."""
        if self.pattern == "unstructured":
            return f"{100 * self.sparsity:g}%"
        return self.rounded or self.pattern

    @property
    def storages(self) -> tuple[str, ...]:
        """The formats that can hold it and change nothing more."""
        if self.rounded:
            return (self.rounded,)
        nm = parse_pattern(self.pattern)
        fits = nm is not None and nm[0] <= 2 and nm[1] % 4 == 0
        return tuple(kernel for kernel in EXACT if fits or FORMATS[kernel].pattern != "2:4")


def default_candidates() -> tuple[Candidate, ...]:
    """2:4, unstructured from 50 to 90 %, and each format that rounds."""
    unstructured = (Candidate("unstructured", sparsity) for sparsity in SPARSITIES)
    rounded = (Candidate("2:4", 0.5, kernel) for kernel in ROUNDED)
    return (*unstructured, Candidate("2:4", 0.5), *rounded)


def parse(names: Sequence[str], who: str = "advise") -> tuple[Candidate, ...]:
    """Candidates by name: "2:4", "4:8", "70%", or a format that rounds.

    Raises:
        ValueError: A name that is none of these.
    """
    found = []
    for name in names:
        percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", name)
        if name in ROUNDED:
            found.append(Candidate("2:4", 0.5, name))
        elif percent and 0 < float(percent[1]) < 100:
            found.append(Candidate("unstructured", float(percent[1]) / 100))
        elif re.fullmatch(r"\d+:\d+", name):
            kept, group = parse_pattern(name, who)
            found.append(Candidate(name, 1 - kept / group))
        else:
            known = ", ".join(["N:M", "a share of zeros as 70%", *ROUNDED])
            raise ValueError(f"{who}: candidates must be {known}, got {name!r}")
    if not found:
        raise ValueError(f"{who}: candidates must be one or more, got none")
    return tuple(dict.fromkeys(found))
