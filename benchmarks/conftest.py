"""Options of `pytest benchmarks/`, the fixture that runs a race, what is printed and written."""

from __future__ import annotations

import os

# Before torch is imported: its threads spin for a third of a millisecond after each product and
# not for tens, in which other libraries' threads would run at half speed.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from dataclasses import asdict

import pytest
import record
import torch
from contenders import KINDS, kind_here, line_up, own_variants, plain_read, rivals_for
from harness import Race

RESULTS = pytest.StashKey[record.Results]()
EXACT = ("float32", "bfloat16", "float16")
MOST_COLUMNS = 8  # on a terminal; the files have all
# Compiling for one number of tokens takes seconds: by default only at these.
FEW_TOKENS = (1, 16, 128)
SLOW_TO_BUILD = ("DeepSparse float32",)


def pytest_addoption(parser):
    parser.addoption(
        "--isa",
        choices=KINDS,
        default=None,
        help="kind of CPU, whose bars count and whose layouts run; this one's by default",
    )
    parser.addoption("--full", action="store_true", help="every cell: hours")
    parser.addoption("--device", choices=("cpu", "cuda"), default=None,
                     help="the GPU if there is one, else the CPU")  # fmt: skip
    parser.addoption("--seconds", type=float, default=1.0, help="of rounds for each cell")
    parser.addoption("--results", default=None,
                     help="write benchmarks/results/<name>-<question>.json and .md")  # fmt: skip


def pytest_configure(config):
    def facts() -> dict:
        found = record.environment(_device(config), _isa(config))
        if not config.getoption("--full"):
            for name in SLOW_TO_BUILD:
                few = f"compiled for each M: only at M = {FEW_TOKENS}, at all with --full"
                found["absent rivals"].setdefault(name, few)
        return found

    config.stash[RESULTS] = record.Results(config.getoption("--results"), facts)


def pytest_generate_tests(metafunc):
    plan = getattr(metafunc.module, "plan", None)
    if plan and "cell" in metafunc.fixturenames:
        cells = plan(metafunc.config.getoption("--full"))
        metafunc.parametrize("cell", cells, ids=[cell.id for cell in cells])


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(disable_gc=True))


@pytest.fixture(scope="session")
def isa(request) -> str:
    return _isa(request.config)


def _isa(config) -> str:
    return config.getoption("--isa") or kind_here()


def _device(config) -> str:
    return config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def device(request) -> str:
    return _device(request.config)


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def keep(request):
    """The function that keeps a cell: `keep(cell)`; `keep.once(name)` skips what is kept."""

    def once(name: str) -> None:
        if request.config.stash[RESULTS].has(_question(request), name):
            pytest.skip("measured by an earlier run: delete its files to measure anew")

    def add(cell: dict) -> None:
        request.config.stash[RESULTS].add(_question(request), cell)

    add.once = once
    return add


def _question(request) -> str:
    return request.module.__name__.removeprefix("bench_")


@pytest.fixture
def race(request, benchmark, isa, device, keep):
    """The function that runs one cell: `race(cell, every=False, rivals=EXACT, plain_read=False)`.

    every: All layouts of ours, not only the chosen ones. rivals: What those keep weights in.
    plain_read: Whether a read loop takes its turns as well.
    """
    config = request.config
    full = config.getoption("--full")

    def run(cell, every: bool = False, rivals: tuple[str, ...] = EXACT, plain_read: bool = False):
        keep.once(cell.id)
        own = own_variants(cell.sparsity, cell.weights, isa, device, every or full)
        names = rivals_for(device, rivals, isa, cell.sparsity)
        if not own and not names:
            pytest.skip(f"nothing here keeps weights in {cell.weights}")
        few = full or cell.tokens in FEW_TOKENS
        contenders = line_up(cell.shape, cell.sparsity, own, names, device).at(
            cell.tokens, lambda name: few or name not in SLOW_TO_BUILD
        )
        if plain_read:
            contenders.append(_reader(contenders))
        one = Race(contenders, device)
        results = one.run(benchmark, config.getoption("--seconds"))
        found = _judge(one, results)
        found |= {"cell": cell.id, **asdict(cell), "results": [asdict(r) for r in results]}
        benchmark.extra_info.update(found)
        keep(found)

    return run


def _reader(contenders):
    weights = [c.weight_bytes for c in contenders if c.entrant.is_ours]
    return plain_read(min(weights or [c.weight_bytes for c in contenders]), contenders[0].x)


def _judge(one: Race, results) -> dict:
    """The best of ours, the fastest rival, and the ratio of their times."""
    best = min((r for r in results if r.is_ours), key=lambda r: r.ms, default=None)
    others = [r for r in results if not r.is_ours and r.name != "plain read"]
    rival = min(others, key=lambda r: r.ms, default=None)
    return {
        "best": best.name if best else None,
        "rival": rival.name if rival else None,
        "ratio": one.ratio(rival.name, best.name) if best and rival else None,
    }


def pytest_terminal_summary(terminalreporter, config):
    found = config.stash[RESULTS]
    for question, cells in found.cells.items():
        rows, notes = record.page_of(question, cells)
        terminalreporter.section(question)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            columns = list(zip(row, widths, strict=True))[:MOST_COLUMNS]
            terminalreporter.write_line("  ".join(c.ljust(w) for c, w in columns).rstrip())
        for note in notes:
            terminalreporter.write_line(note)
    for rival, why in (found.facts["absent rivals"] if found.cells else {}).items():
        terminalreporter.write_line(f"absent: {rival}: {why}")
