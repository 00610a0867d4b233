"""Real launches of every op for GPUs; see gpu_checks.py, which also runs without pytest."""

import json
import sys
from pathlib import Path

import gpu_checks
import pytest
import torch

HAS_GPU = torch.cuda.is_available()


def _ids(value):
    return value.__name__ if callable(value) else f"{value[0]}-{value[1]}-{str(value[2])[6:]}"


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("check", gpu_checks.CHECKS, ids=_ids)
@pytest.mark.parametrize("variant", gpu_checks.variants_here() if HAS_GPU else [], ids=_ids)
def test_on_the_gpu(variant, check):
    check(variant)


WITHOUT_GPU = set(gpu_checks.CHECKS) - set(gpu_checks.NEED_GPU)


@pytest.mark.skipif(HAS_GPU, reason="they run on the GPU")
@pytest.mark.parametrize("check", sorted(WITHOUT_GPU, key=_ids), ids=_ids)
def test_the_checks_themselves(check):
    for variant in gpu_checks.variants_here():
        if variant[:2] == ("sparse24", "avx2"):
            check(variant)


def test_the_benchmark_runs_dry_and_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import gpu

    dry = ["gpu.py", "--dry-run", "--no-build", "--results", str(tmp_path)]
    monkeypatch.setattr(gpu, "TURNS", 1)
    monkeypatch.setattr(sys, "argv", dry)
    gpu.main()
    results = tmp_path / "gpu-cpu.json"
    document = json.loads(results.read_text())
    wanted = {(*shape, M, p) for shape, p, tokens in gpu.plan(dry=True) for M in tokens}
    cells = document["cells"].values()
    assert {(c["N"], c["K"], c["M"], c["pattern"]) for c in cells} == wanted
    for cell in cells:
        stems = {"2:4"} if cell["pattern"] == "2:4" else {"bitmask", "csr"}
        assert {f"{stem} reference" for stem in stems} <= set(cell["microseconds"])
        assert all(isinstance(took, float) for took in cell["microseconds"].values())

    (gone, cell), *kept = document["cells"].items()
    results.write_text(json.dumps({**document, "cells": dict(kept)}))
    gpu.main()
    again = json.loads(results.read_text())["cells"]
    assert all(again[key] == one for key, one in kept) and again[gone]["M"] == cell["M"]
    assert "## 90 % zeros" in capsys.readouterr().out
