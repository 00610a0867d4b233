"""The benchmarks themselves: the gate, the plans, the records, the rules of a race."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import bench_decode
import bench_dtypes
import bench_shapes
import bench_sparsity
import bench_tokens
import clock
import contenders
import gate
import harness
import record
from rivals import RIVALS

from prunekern.compare.limits import Limits
from prunekern.formats import FORMATS

QUESTIONS = (bench_tokens, bench_sparsity, bench_shapes, bench_dtypes, bench_decode)


# -------------------------------------------------------------------------------------------- gate


def results(path, times):
    """A file of results: cell -> name -> milliseconds; ours are those with a slash."""
    cells = [
        {
            "cell": cell,
            "results": [{"name": n, "is_ours": "/" in n, "ms": ms} for n, ms in found.items()],
        }
        for cell, found in times.items()
    ]
    path.write_text(json.dumps({"environment": {}, "cells": cells}))
    return str(path)


OLD = {"M1": {"2:4/amx": 1.0, "csr/avx2": 2.0, "torch": 2.0, "OpenVINO": 3.0}}


@pytest.mark.parametrize(
    ("new", "status", "said"),
    [
        ({"M1": OLD["M1"]}, 0, "2 compared: 0 slower, 0 faster"),
        # The machine is at half its speed: ours and theirs alike.
        ({"M1": {n: 2 * ms for n, ms in OLD["M1"].items()}}, 0, "0 slower"),
        ({"M1": OLD["M1"] | {"2:4/amx": 1.2}}, 1, "SLOWER M1: 2:4/amx takes 1.20x"),
        # As fast as before, while the rivals show that the machine became faster.
        ({"M1": OLD["M1"] | {"torch": 1.0, "OpenVINO": 1.5}}, 1, "SLOWER M1: csr/avx2"),
        ({"M1": OLD["M1"] | {"2:4/amx": 1.05}}, 0, "0 slower"),
        ({"M1": OLD["M1"] | {"2:4/amx": 0.5}}, 0, "1 faster"),
        ({"M2": OLD["M1"]}, 2, "got none"),
        ({"M1": {"2:4/amx": 9.0}}, 2, "no rival in both runs: M1"),
        ({**OLD, "M2": OLD["M1"]}, 0, "only in new.json: 1"),
    ],
)  # fmt: skip
def test_the_gate_compares_with_rivals(tmp_path, capsys, new, status, said):
    files = [results(tmp_path / "old.json", OLD), results(tmp_path / "new.json", new)]
    assert gate.main(files) == status
    assert said in capsys.readouterr().out


def test_the_gates_tolerance(tmp_path):
    new = {"M1": OLD["M1"] | {"2:4/amx": 1.2}}
    files = [results(tmp_path / "old.json", OLD), results(tmp_path / "new.json", new)]
    assert gate.main([*files, "--tolerance", "25%"]) == 0
    assert gate.main([*files, "--tolerance", "0.05"]) == 1
    with pytest.raises(SystemExit):
        gate.main([*files, "--tolerance", "-5%"])


def test_the_gate_names_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{}")
    good = results(tmp_path / "old.json", OLD)
    for bad in ("bad.json", "missing.json"):
        assert gate.main([good, str(tmp_path / bad)]) == 2
        assert f"{bad} must be a result file" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.__name__)
def test_plans_name_each_cell_once_and_full_has_more(question):
    few, full = ([cell.id for cell in question.plan(f)] for f in (False, True))
    assert len(set(few)) == len(few) and len(set(full)) == len(full)
    assert set(few) <= set(full)
    assert len(full) > len(few)


def test_the_54_cells_are_the_default_of_tokens():
    assert len(bench_tokens.plan(False)) == 54


# -------------------------------------------------------------------------------------- contenders


def test_every_format_of_the_table_is_in_some_cell():
    wanted = {
        stem
        for weights in bench_dtypes.WEIGHTS
        for stem, _, _ in contenders.own_variants(0.5, weights, "avx2", "cpu")
    }
    assert wanted == {cls.stem for cls in FORMATS.values()}


def test_what_is_no_2_4_has_no_2_4_contender():
    stems = {v[0] for v in contenders.own_variants(0.7, "bfloat16", "avx512bf16", "cpu")}
    assert stems and not any(s.startswith("sparse24") for s in stems)


def test_a_lesser_kind_of_machine_has_no_layout_beyond_it():
    for every in (False, True):
        layouts = {v[1] for v in contenders.own_variants(0.5, "bfloat16", "avx2", "cpu", every)}
        assert layouts and not layouts & {"amx", "avx512bf16", "avx512"}


def test_rivals_of_2_4_run_on_2_4_alone(monkeypatch):
    monkeypatch.setattr(contenders, "absent_rivals", lambda device, isa: {})
    names = {s: contenders.rivals_for("cuda", ("float16",), "avx2", s) for s in (0.5, 0.7)}
    assert "torch 2:4 float16 (cutlass)" in names[0.5]
    assert not any("2:4" in name for name in names[0.7]) and names[0.7]


def lined_up(tokens=3, shape=(64, 256)):
    own = contenders.own_variants(0.5, "bfloat16", "avx2", "cpu")
    names = ("torch bfloat16", "torch float32, packed by MKL")
    return contenders.line_up(shape, 0.5, own, names, "cpu").at(tokens)


def test_all_copies_of_all_contenders_make_the_same_product():
    for tokens in (3, 5):  # the product of MKL is for one number of tokens
        for c in lined_up(tokens):
            assert c.x.shape == (tokens, 256)
            weight = contenders.weight_of((64, 256), 0.5)
            exact = c.x.double() @ weight.double().t()
            assert len(c.copies) >= contenders.LEAST_COPIES
            for product in c.copies:
                torch.testing.assert_close(product.call(c.x).double(), exact, rtol=0.02, atol=0.05)


def test_copies_are_no_views_of_one_another():
    (c, *_) = lined_up()
    tensors = [cell.cell_contents for cell in c.copies[0].call.__closure__]
    others = [cell.cell_contents for cell in c.copies[1].call.__closure__]
    pointers = [
        {t.data_ptr() for group in found if isinstance(group, tuple) for t in group}
        for found in (tensors, others)
    ]
    assert pointers[0] and not pointers[0] & pointers[1]


# ------------------------------------------------------------------------------------------- races


class Benchmark:
    """As pytest-benchmark's fixture."""

    def pedantic(self, target, args, setup, rounds):
        for _ in range(rounds):
            setup()
            target(*args)


@pytest.fixture
def race(monkeypatch):
    """A race of fake products: {name: seconds}, ours are those with a slash."""
    limits = Limits(1e9, {"float32": 1e9})
    monkeypatch.setattr(harness, "limits", lambda device: limits)
    monkeypatch.setattr(clock, "cold_bytes", lambda: 1 << 16)
    monkeypatch.setattr(harness, "cold_bytes", lambda: 1 << 16)

    def make(**seconds):
        calls = []
        found = []
        for name, took in seconds.items():

            def call(x, name=name):
                calls.append(name)

            product = contenders.Product(call, 1000, lambda x, c=call, s=took: c(x) or s)
            entrant = contenders.Entrant(
                name, torch.float32, None, 500, pool=name, is_ours=name.startswith("our")
            )
            found.append(contenders.Contender(entrant, [product] * 2, torch.zeros(2, 10), 5))
        return harness.Race(found), calls

    return make


def test_contenders_take_turns_and_the_first_call_of_each_turn_is_not_timed(race):
    one, calls = race(ours=1e-3, theirs=2e-3)
    calls.clear()
    found = {r.name: r for r in one.run(Benchmark(), 0.0)}
    assert found["ours"].ms == 1 and found["theirs"].ms == 2
    assert found["ours"].rounds == found["theirs"].rounds == harness.LEAST_ROUNDS
    assert one.ratio("theirs", "ours") == 2
    # The round that estimates, in order; then the best of ours last, as the benchmark's own.
    assert calls[:4] == ["ours", "ours", "theirs", "theirs"]
    assert calls[4:8] == ["theirs", "theirs", "ours", "ours"]


def test_who_is_far_behind_runs_no_more(race):
    one, calls = race(ours=1e-3, theirs=2e-3, tortoise=1.0)
    calls.clear()
    found = {r.name: r for r in one.run(Benchmark(), 0.0)}
    assert "tortoise" not in calls
    assert found["tortoise"].ms == 1000 and found["tortoise"].rounds == 1
    assert one.ratio("tortoise", "ours") == 1000


def test_the_share_of_the_limit(race):
    one, _ = race(ours=10e-6, theirs=1e-3)
    found = {r.name: r for r in one.run(Benchmark(), 0.0)}
    # 1000 bytes of weight, 80 of x, 40 of y at 1 GB/s; 2 tokens x 500 weights x 2 at 1 GFLOP/s.
    assert found["ours"].flops == 2000
    assert found["ours"].share_of_limit == pytest.approx(2e-6 / 10e-6)
    assert found["ours"].gb_per_s == pytest.approx(1120 / 10e-6 / 1e9)
    assert found["theirs"].share_of_limit is None


def test_the_filler_reads_its_whole_buffer_in_turn(monkeypatch):
    monkeypatch.setattr(clock, "cold_bytes", lambda: 4096)
    filler = clock.Filler(1024)
    first = next(filler.parts).data_ptr()
    for _ in range(3):
        filler()
    assert next(filler.parts).data_ptr() == first
    assert clock.Filler(0).parts is None


def test_cold_is_more_than_a_cache():
    clock.cold_bytes.cache_clear()
    assert clock._LEAST <= clock.cold_bytes() <= clock._MOST


# ----------------------------------------------------------------------------------------- records


def cell(name="64x64-50%-bfloat16-M1", ours=1.0, rival=2.0):
    found = [
        {"name": "2:4/amx bf16", "is_ours": True, "ms": ours, "share_of_limit": 0.5},
        {"name": "torch bfloat16", "is_ours": False, "ms": rival, "share_of_limit": None},
    ]
    return {
        "cell": name, "results": found, "best": "2:4/amx bf16", "rival": "torch bfloat16",
        "ratio": rival / ours,
    }  # fmt: skip


def test_a_page_has_every_cell_and_names_the_lost_ones():
    rows, notes = record.races([cell(), cell("M2", 3.0, 1.5)])
    assert [row[0] for row in rows] == ["cell", "64x64-50%-bfloat16-M1", "M2"]
    assert rows[1][6] == "2.00x" and rows[2][6] == "0.50x"
    assert rows[1][rows[0].index("torch bfloat16", 7)] == "2.00"
    assert notes == ["1 of 2 cells won", "lost: M2: 2:4/amx bf16 0.50x of torch bfloat16"]
    assert len({len(row) for row in rows}) == 1


def test_a_cell_without_ours_is_no_victory():
    lonely = cell() | {"best": None, "ratio": None}
    lonely["results"] = lonely["results"][1:]
    rows, notes = record.races([lonely])
    assert rows[1][1] == "none" and rows[1][6] == ""
    assert notes[0] == "0 of 0 cells won"


def test_files_are_written_for_the_gate(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    cells = [cell()]
    facts = {"device": "a CPU", "absent rivals": {"DeepSparse": "not installed"}}
    page = record.write("zen4-tokens", facts, cells, *record.races(cells)).read_text()
    assert "DeepSparse: not installed" in page and "| 64x64-50%-bfloat16-M1 |" in page
    both = [str(tmp_path / "zen4-tokens.json")] * 2
    assert gate.main(both) == 0


def test_a_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)

    def run() -> record.Results:
        return record.Results("zen4", lambda: {"device": "a CPU"})

    first = run()
    assert not first.has("tokens", "M1")
    first.add("tokens", cell("M1"))
    second = run()
    assert second.has("tokens", "M1") and not second.has("tokens", "M2")
    assert not second.has("decode", "M1")
    second.add("tokens", cell("M2"))
    page = (tmp_path / "zen4-tokens.md").read_text()
    assert "| M1 |" in page and "| M2 |" in page
    monkeypatch.setattr(record, "digest", lambda: "other sources")
    assert not run().has("tokens", "M1")


def test_without_a_name_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    found = record.Results(None, dict)
    found.add("tokens", cell("M1"))
    assert found.has("tokens", "M1") and not list(tmp_path.iterdir())


def test_steps_that_one_lacks_are_left_empty():
    cells = [
        {"cell": "2:4/amx", "times_ms": {"compress": 1.0, "pack": 2.0}, "weight_bytes": 10**6},
        {"cell": "scipy", "times_ms": {"compress and pack": 3.0}, "weight_bytes": 2 * 10**6},
    ]
    rows, _ = record.steps(cells)
    assert rows[1] == ["2:4/amx", "1.0", "1.0", "2.0", ""]
    assert rows[2] == ["scipy", "2.0", "", "", "3.0"]


def test_rivals_that_cannot_be_limited_are_named():
    for kind in contenders.KINDS:
        absent = contenders.absent_rivals("cpu", kind)
        running = contenders.rivals_for("cpu", {r.weights for r in RIVALS.values()}, kind)
        assert not set(running) & set(absent)
        assert {*running, *absent} == {n for n, r in RIVALS.items() if r.device == "cpu"}
        if kind != contenders.kind_here():
            assert "no switch" in absent["OpenVINO float32"]
