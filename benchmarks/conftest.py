"""Options and the summary of `pytest benchmarks/`: ratios against the bars, misses named."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from prunekern import ops
from prunekern.hardware import hardware

CELLS: list[dict] = []


def pytest_addoption(parser):
    parser.addoption(
        "--isa",
        choices=("avx2", "avx512bf16"),
        default=None,
        help="kind of machine whose bars count; what this CPU has by default",
    )
    parser.addoption("--results", default=None,
                     help="write benchmarks/results/<name>.json and .md")  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(disable_gc=True))


@pytest.fixture(scope="session")
def isa(request) -> str:
    kind = request.config.getoption("--isa")
    return kind or ("avx512bf16" if "avx512bf16" in ops.cpu_isa() else "avx2")


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def cells() -> list[dict]:
    return CELLS


def _line(cell: dict) -> list[str]:
    met = "met" if cell["ratio"] >= cell["bar"] else "MISSED"
    times = ", ".join(f"{name} {ms:.3f}" for name, ms in cell["times_ms"].items())
    return [cell["what"], cell["shape"], str(cell["M"]), f"{cell['ratio']:.2f}x",
            f"{cell['bar']:g}x", met, cell["layout"], times]  # fmt: skip


HEAD = ["what", "shape", "M", "ratio", "bar", "", "layout", "medians, ms"]


def pytest_terminal_summary(terminalreporter, config):
    if not CELLS:
        return
    rows = [_line(cell) for cell in CELLS]
    widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]
    terminalreporter.section("ratios against the bars")
    for row in [HEAD, *rows]:
        terminalreporter.write_line("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)))
    missed = sum(row[5] == "MISSED" for row in rows)
    terminalreporter.write_line(f"{len(rows) - missed} of {len(rows)} bars met")
    name = config.getoption("--results")
    if name:
        _write(name, rows)


def _write(name: str, rows: list[list[str]]) -> None:
    machine = hardware()
    environment = {
        "cpu": machine.cpu,
        "features": sorted(ops.cpu_isa()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "limited": {k: os.environ[k] for k in
                    ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
                    if k in os.environ},
    }  # fmt: skip
    folder = Path(__file__).parent / "results"
    document = {"environment": environment, "cells": CELLS}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [f"# Ratios against the bars: {name}", ""]
    lines += [f"* {key}: {value}" for key, value in environment.items()] + [""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
