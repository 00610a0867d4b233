"""Results of a run: JSON for `gate.py`, a Markdown table a question for people.

Both are written after every cell. A later run with the same name and sources goes on where the one
before was cut off; delete the files to measure anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from clock import cold_bytes
from contenders import absent_rivals
from limits import limits

from prunekern import ops
from prunekern.hardware import hardware

FOLDER = Path(__file__).resolve().parent / "results"
_PACKAGES = ("torch", "numpy", "scipy", "onnxruntime", "openvino", "torchao", "transformers")
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def digest() -> str:
    """Of the sources that times depend on."""
    root = FOLDER.parent.parent
    files = [*(root / "csrc").rglob("*.*"), *(root / "prunekern").rglob("*.py")]
    files += (root / "benchmarks").rglob("*.py")
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:16]


class Results:
    """Cells by question; with a name also their files.

    Args:
        name: Of the machine, or None: nothing is read or written.
        facts: A function that says the environment, called when a file is first written.
    """

    def __init__(self, name: str | None, facts: Callable[[], dict]):
        self.name, self._facts = name, facts
        self.cells: dict[str, list[dict]] = defaultdict(list)
        self.read: set[str] = set()

    @functools.cached_property
    def facts(self) -> dict:
        """The environment."""
        return {**self._facts(), "sources": digest()}

    def has(self, question: str, cell: str) -> bool:
        """Whether an earlier run, or this one, has measured this cell."""
        if self.name and question not in self.read:
            self.read.add(question)
            path = FOLDER / f"{self.name}-{question}.json"
            earlier = json.loads(path.read_text()) if path.exists() else None
            if earlier and earlier["environment"].get("sources") == digest():
                self.cells[question] += earlier["cells"]
        return any(c["cell"] == cell for c in self.cells[question])

    def add(self, question: str, cell: dict) -> None:
        """One more; its files are written."""
        self.cells[question].append(cell)
        if self.name:
            cells = self.cells[question]
            rows, notes = page_of(question, cells)
            write(f"{self.name}-{question}", self.facts, cells, rows, notes)


def page_of(question: str, cells: list[dict]) -> tuple[list[list[str]], list[str]]:
    """Rows, the head first, and notes."""
    return {"bars": bars, "convert": steps}.get(question, races)(cells)


def environment(device: str, isa: str) -> dict:
    """All that numbers depend on."""
    machine = hardware()
    measured = limits(device)
    found = {
        "device": machine.gpu if device == "cuda" else machine.cpu,
        "features": sorted(ops.cpu_isa()),
        "kind": isa,
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "packages": {p: v for p in _PACKAGES if (v := _version(p))},
        "limited": {k: os.environ[k] for k in _LIMITS if k in os.environ},
        "read GB/s": round(measured.bytes_per_s / 1e9, 1),
        "peak GFLOP/s": {k: round(v / 1e9) for k, v in measured.flops_per_s.items()},
        "absent rivals": absent_rivals(device, isa),
    }
    if device == "cpu":
        found["cold bytes"] = cold_bytes()
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def races(cells: list[dict]) -> tuple[list[list[str]], list[str]]:
    """Head and rows, and notes: columns of others are their times over that of the best of ours."""
    names = list(dict.fromkeys(r["name"] for cell in cells for r in cell["results"]))
    names = [n for n in names if any(n != cell["best"] for cell in cells)]
    head = ["cell", "best of ours", "ms", "share of limit", "fastest rival", "ms", "ratio", *names]
    rows = [head]
    for cell in cells:
        found = {r["name"]: r for r in cell["results"]}
        best, rival = found.get(cell["best"]), found.get(cell["rival"])
        row = [cell["cell"], cell["best"] or "none", _ms(best)]
        row += [
            f"{best['share_of_limit']:.2f}" if best else "",
            cell["rival"] or "none",
            _ms(rival),
        ]
        row += [f"{cell['ratio']:.2f}x" if best and rival else ""]
        base = (best or rival or {"ms": 1.0})["ms"]
        row += [f"{found[n]['ms'] / base:.2f}" if n in found else "" for n in names]
        rows.append(row)
    judged = [c for c in cells if c["ratio"]]
    behind = [c for c in judged if c["ratio"] < 1]
    notes = [f"{len(judged) - len(behind)} of {len(judged)} cells won"]
    notes += [f"lost: {c['cell']}: {c['best']} {c['ratio']:.2f}x of {c['rival']}" for c in behind]
    return rows, notes


def bars(cells: list[dict]) -> tuple[list[list[str]], list[str]]:
    """The same of cells that have bars to reach."""
    rows = [["what", "shape", "M", "ratio", "bar", "", "layout", "medians, ms"]]
    for cell in cells:
        met = "met" if cell["ratio"] >= cell["bar"] else "MISSED"
        times = ", ".join(f"{name} {ms:.3f}" for name, ms in cell["times_ms"].items())
        rows.append(
            [cell["what"], cell["shape"], str(cell["M"]), f"{cell['ratio']:.2f}x",
             f"{cell['bar']:g}x", met, cell["layout"], times]
        )  # fmt: skip
    missed = sum(row[5] == "MISSED" for row in rows)
    return rows, [f"{len(cells) - missed} of {len(cells)} bars met"]


def _ms(result: dict | None) -> str:
    return f"{result['ms']:.3f}" if result else ""


def steps(cells: list[dict]) -> tuple[list[list[str]], list[str]]:
    """The same of what is done once: milliseconds of each step."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["times_ms"]))
    rows = [["what", "MB", *(f"{name}, ms" for name in names)]]
    for cell in cells:
        times = cell["times_ms"]
        row = [cell["cell"], f"{cell['weight_bytes'] / 1e6:.1f}"]
        rows.append(row + [f"{times[n]:.1f}" if n in times else "" for n in names])
    return rows, []


def markdown(title: str, facts: dict, rows: list[list[str]], notes: list[str]) -> str:
    """A page."""
    lines = [f"# {title}", ""]
    for key, value in facts.items():
        if key == "absent rivals":
            lines += ["* absent rivals:", *(f"  * {n}: {why}" for n, why in value.items())]
        elif isinstance(value, dict):
            lines.append(f"* {key}: {', '.join(f'{k} {v}' for k, v in value.items()) or 'none'}")
        else:
            lines.append(f"* {key}: {', '.join(value) if isinstance(value, list) else value}")
    lines += ["", *(line for note in notes for line in (note, ""))] if notes else [""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    return "\n".join(lines) + "\n"


def write(
    name: str, facts: dict, cells: list[dict], rows: list[list[str]], notes: list[str]
) -> Path:
    """Both files; returns the path of the Markdown one."""
    FOLDER.mkdir(exist_ok=True)
    document = {"environment": facts, "cells": cells}
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    path = FOLDER / f"{name}.md"
    path.write_text(markdown(name, facts, rows, notes))
    return path
