import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunekern
from prunekern import ops
from prunekern.compare.expected import sentences
from prunekern.formats import DTYPES
from prunekern.layouts import LAYOUTS

PACKAGE = Path(prunekern.__file__).parent

# A library that is not there and one that does not load; a module that is not there.
_RUN_WITHOUT = """
import sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "module":
    sys.modules["prunekern._C"] = None
import torch, prunekern
from prunekern import ops, testing
assert prunekern.__file__.startswith(sys.argv[1])
for kernel in ("2:4", "csr", "bitmask"):
    weight = testing.random_weight(kernel, 8, 16, torch.float32)
    canonical = prunekern.compress(weight, kernel)
    layout = ops.default_layout(canonical.stem, torch.device("cpu"), torch.float32)
    packed = prunekern.pack(canonical, layout)
    testing.assert_close_to_float64(
        prunekern.linear(torch.ones(2, 16), packed), torch.ones(2, 16), weight
    )
assert {layout for _, layout in ops.available()} == {"reference"}
print(prunekern.hardware())
try:
    ops.op_for("sparse24", "scalar")
except ValueError as error:
    print(error)
"""


def test_everything_found_is_told():
    found = prunekern.hardware()
    assert found.threads == torch.get_num_threads() and found.cores >= 1
    assert found.torch == torch.__version__
    assert set(found.chosen) == {(s, str(d)[6:]) for s in LAYOUTS for d in DTYPES}
    for (stem, dtype), layout in found.chosen.items():
        assert (stem, layout) in ops.available()
        cpu = torch.device("cpu")
        assert layout == ops.default_layout(stem, cpu, getattr(torch, dtype))
    text = str(found)
    for word in (found.cpu, found.gpu, torch.__version__, *found.chosen.values()):
        assert word in text


@pytest.mark.skipif(ops.LIBRARY_ERROR is not None, reason="no compiled ops")
def test_a_build_is_described_and_what_is_missing_has_a_reason():
    found = prunekern.hardware()
    assert found.problem == "" and found.build["compiler"] in str(found)
    for variant, lacks in found.missing.items():
        runs = variant in ops.cpu_isa()
        assert runs == (not lacks)
        line = next(one for one in str(found).splitlines() if one.startswith(f"{variant} "))
        assert "runs" in line if runs else all(feature in line for feature in lacks)


def test_a_feature_that_the_cpu_lacks_is_named():
    from prunekern.hardware import Hardware

    old = Hardware(
        "486", 1, 1, "2.13", "none",
        missing={"avx512": ["avx512f", "avx512bw"]},
        gpu_reasons={("sparse24", "sm80"): "not built"},
        problem="gone",
    )  # fmt: skip
    assert "avx512       needs avx512f, avx512bw" in str(old)
    assert "sm80         sparse24: not built" in str(old)
    assert "build    none: gone" in str(old)


@pytest.mark.parametrize(
    ("name", "chip"), [("NVIDIA H200", "H200"), ("NVIDIA H100 PCIe", None), (None, None)]
)
def test_a_gpu_that_is_known_is_modelled(name, chip, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    found = prunekern.hardware()
    assert found.modelled == (sentences(chip) if chip else [])
    assert all(line in str(found).splitlines() for line in found.modelled)


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ("library", "_ops.so is not there; build it with: pip install"),
        ("module", "does not load with torch .*_C.*; build it anew with: pip install"),
        ("sense", "does not load with torch .*_ops.so"),
    ],
)
def test_without_the_compiled_part_references_run_and_say_why(lacking, told, tmp_path):
    without = shutil.ignore_patterns("__pycache__", "_ops.so" if lacking == "library" else "")
    shutil.copytree(PACKAGE, tmp_path / "prunekern", ignore=without)
    if lacking == "sense":
        (tmp_path / "prunekern" / "_ops.so").write_text("no library")
    elif lacking == "module":
        (tmp_path / "prunekern" / "_ops.so").touch()
    out = subprocess.run(
        [sys.executable, "-c", _RUN_WITHOUT, str(tmp_path), lacking],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert re.search(f"build    none: .*{told}", out.stdout), out.stdout
    assert "must be one that runs here (reference), got 'scalar'" in out.stdout
