"""Did anything get slower? Compares two result files, by ratios to the rivals that both have.

    python benchmarks/gate.py OLD.json NEW.json [--tolerance 10%]

Two runs, even on one machine, differ in what else the machine does. Rivals did not change between
them, so that they say by how much: a cell's drift is the median, over the rivals in both runs, of
new / old time. One of ours is slower if

    new time / old time  >  drift (1 + tolerance)

Exit status: 0 if none is slower, 1 if any is; they are named. 2 if there is nothing to compare.
Cells that only one file has are counted, and cells without a common rival are told: they are not
compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Change:
    """One of ours in one cell.

    Attributes:
        cell, name: Which.
        ratio: (new time / old time) / drift: above 1 it got slower beside its rivals.
        drift: What the rivals' times became, as a multiple.
    """

    cell: str
    name: str
    ratio: float
    drift: float

    def __str__(self) -> str:
        return f"{self.cell}: {self.name} takes {self.ratio:.2f}x as long; rivals {self.drift:.2f}x"


def percent(text: str) -> float:
    """The share that "10%" or "0.1" says.

    Raises:
        ValueError: It is neither, or negative.
    """
    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not share >= 0:
        raise ValueError(f"gate: tolerance must be 0 or more, got {text}")
    return share


def cells_of(path: Path) -> dict[str, dict[str, dict]]:
    """Cell -> name -> result.

    Raises:
        ValueError: Not a file of results of races.
    """
    try:
        cells = json.loads(path.read_text())["cells"]
        return {cell["cell"]: {r["name"]: r for r in cell["results"]} for cell in cells}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"gate: {path} must be a result file that `pytest benchmarks/ --results NAME` wrote, "
            f"got {type(error).__name__}: {error}"
        ) from None


def changes(old: dict, new: dict) -> tuple[list[Change], list[str]]:
    """What became of each of ours in each common cell, and the cells without a common rival."""
    found, alone = [], []
    for cell in old.keys() & new.keys():
        before, after = old[cell], new[cell]
        common = before.keys() & after.keys()
        drifts = [after[n]["ms"] / before[n]["ms"] for n in common if not before[n]["is_ours"]]
        if not drifts:
            alone.append(cell)
            continue
        drift = statistics.median(drifts)
        found += [
            Change(cell, n, after[n]["ms"] / before[n]["ms"] / drift, drift)
            for n in common
            if before[n]["is_ours"]
        ]
    return sorted(found, key=lambda c: (-c.ratio, c.cell, c.name)), sorted(alone)


def main(arguments: list[str] | None = None) -> int:
    """See the top of the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=percent, default=0.1, help="10%% by default")
    options = parser.parse_args(arguments)
    try:
        old, new = cells_of(options.old), cells_of(options.new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found, alone = changes(old, new)
    for cell in alone:
        print(f"not compared, no rival in both runs: {cell}")
    if not found:
        print("gate: the files must have a cell, a rival and a kernel in common, got none")
        return 2
    slower = [c for c in found if c.ratio > 1 + options.tolerance]
    for change in slower:
        print(f"SLOWER {change}")
    faster = sum(c.ratio < 1 / (1 + options.tolerance) for c in found)
    print(
        f"{len(found)} compared: {len(slower)} slower, {faster} faster by more than "
        f"{options.tolerance:.0%}; cells only in {options.old.name}: {len(old.keys() - new.keys())}"
        f", only in {options.new.name}: {len(new.keys() - old.keys())}"
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
