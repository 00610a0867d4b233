"""Random damage under AddressSanitizer and UBSan; the quick form runs without them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "fuzz" / "corrupt.py"


def test_corruptions_are_refused_or_computed_right():
    run = [sys.executable, str(SCRIPT), "300", "7"]
    out = subprocess.run(run, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "300 corruptions" in out.stdout


def test_damaged_folders_are_refused_or_loaded_as_they_are():
    run = [sys.executable, str(SCRIPT.with_name("corrupt_checkpoint.py")), "100", "7"]
    out = subprocess.run(run, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "100 damages" in out.stdout


@pytest.mark.slow
def test_two_thousand_corruptions_under_sanitizers(tmp_path):
    """Builds the extension with both sanitizers beside a copy of the package and runs there."""
    package = tmp_path / "prunekern"
    shutil.copytree(
        ROOT / "prunekern", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": tools + os.pathsep + os.environ["PATH"]}
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DPRUNEKERN_SANITIZE=ON",
         f"-DPython_EXECUTABLE={sys.executable}", f"-DPRUNEKERN_OUTPUT={package}"],
        ["cmake", "--build", str(build)],
    ):  # fmt: skip
        subprocess.run(command, env=environment, check=True, capture_output=True)
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment |= {
        "LD_PRELOAD": " ".join(runtimes),
        # Python and torch leak on purpose at exit; that is not what is sought.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(tmp_path),
    }
    for script, wanted in (
        (SCRIPT, "2000 corruptions"),
        (SCRIPT.with_name("corrupt_checkpoint.py"), "2000 damages"),
    ):
        out = subprocess.run(
            [sys.executable, str(script), "2000", "1"],
            env=environment, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr[-4000:]
        assert wanted in out.stdout and "sanitized: True" in out.stdout
