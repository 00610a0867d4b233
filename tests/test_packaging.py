"""The sdist builds, and five steps add a variant: one build shows both, as a build takes a minute.

docs/add-a-variant.md is what is followed: its blocks are the changes.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from docs_blocks import ROOT, blocks

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs/add-a-variant.md"
# What the sources of a build must have, whatever else is there.
NEEDED = ("setup.py", "pyproject.toml", "CMakeLists.txt", "csrc/ops.cpp", "csrc/cuda/ptx.cuh")


def _run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout, to see what a clean clone has")
    listed = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """An sdist made from a clean copy, unpacked."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("sdist")
    for name in _tracked():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    make = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    _run(sys.executable, "-c", make, cwd=clone)
    with tarfile.open(next(out.glob("prunekern-*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    return next(path for path in out.iterdir() if path.is_dir())


def _apply(block, sources):
    """One change of the page: a new file, lines after a line, or a piece instead of another."""
    verb, _, rest = block.title.partition(" ")
    path, _, anchor = rest.partition(": ")
    target = sources / path
    if verb == "file":
        assert not target.exists()
        target.write_text(block.text)
        return
    text = target.read_text()
    lines = text.splitlines(keepends=True)
    if verb == "after":
        found = [i for i, line in enumerate(lines) if line.strip() == anchor]
        assert len(found) == 1, f"{block.id}: {anchor!r} stands {len(found)} times in {path}"
        lines.insert(found[0] + 1, block.text)
        target.write_text("".join(lines))
    else:
        assert verb == "replace" and text.count(anchor) == 1, f"{block.id}: {anchor!r}"
        target.write_text(text.replace(anchor, block.text.strip()))


@pytest.fixture(scope="module")
def installed(sources, tmp_path_factory):
    """The folder of a package built from the sdist, with the page's variant in it."""
    changes = [b for b in blocks(PAGE) if b.title.split(" ")[0] in ("file", "after", "replace")]
    assert len(changes) == 7  # steps 1 to 3 and 5 one each, step 4 three
    for block in changes:
        _apply(block, sources)
    target = tmp_path_factory.mktemp("installed")
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    options = ("--no-build-isolation", "--target", str(target))
    _run(*pip, *options, str(sources), env={**os.environ, "PATH": tools, "PYTHONPATH": ""})
    return target


def _python(installed, tmp_path, *arguments):
    path = os.pathsep.join(map(str, (installed, ROOT / "tests", ROOT / "benchmarks")))
    return _run(sys.executable, *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})


def test_the_sdist_has_what_a_build_needs(sources):
    missing = [name for name in _tracked() if name.startswith("csrc/")]
    missing = [name for name in (*missing, *NEEDED) if not (sources / name).exists()]
    assert not missing
    assert not list(sources.rglob("*.so"))


OP = """
import torch, prunekern
from prunekern import ops
weight = torch.tensor([[0, 1.5, 0, -2, 1, 0, 0, 0]])
packed = prunekern.pack(prunekern.compress(weight, "2:4"), "scalar")
y = prunekern.linear(torch.ones(3, 8), packed)
print(prunekern.__file__, ops.LIBRARY_ERROR, y.flatten().tolist())
"""


def test_an_op_runs_from_the_sdist(installed, tmp_path):
    file, error, result = _python(installed, tmp_path, "-c", OP).strip().split(" ", 2)
    assert Path(file).is_relative_to(installed)
    assert (error, result) == ("None", "[0.5, 0.5, 0.5]")


TABLES = """
import json, torch
from prunekern import _C, ops
from prunekern.layouts import LAYOUTS
import contenders, test_build, test_ops
key = ("csr", "avx512bf16")
print(json.dumps({
    "runs": key[1] in ops.cpu_isa(),
    "op": key in ops.OPS,
    "layout": key[1] in LAYOUTS["csr"],
    "built": "csr_avx512bf16" in _C.build_info()["variants"],
    "compiled": key in test_build.COMPILED,
    "tested": (*key, torch.bfloat16) in test_ops.VARIANTS,
    "measured": contenders.best_layout("csr", torch.bfloat16, "avx512bf16") == key[1],
}))
"""


def test_five_steps_add_a_variant(installed, tmp_path):
    """Op, layout, build information, tests and benchmarks have it, and the tests of ops pass."""
    found = json.loads(_python(installed, tmp_path, "-c", TABLES).splitlines()[-1])
    runs = found.pop("runs")
    if not runs:
        del found["tested"], found["measured"]
    assert all(found.values()), found
    if runs:
        wanted = "csr-avx512bf16 and (whole_numbers or neighbours)"
        tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-k", wanted)
        assert "2 passed" in _python(installed, tmp_path, *tests, str(ROOT / "tests/test_ops.py"))
