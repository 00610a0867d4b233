import subprocess
import sys

import pytest
from typer.testing import CliRunner

from prunekern.cli import app


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "prunekern", *arguments], capture_output=True, text=True
    )


def test_hardware_prints_what_was_built():
    result = CliRunner().invoke(app, ["hardware"])
    assert result.exit_code == 0
    for word in ("CPU", "GPU", "build", "CUDA", "sparse24", "scalar"):
        assert word in result.output


def test_wrong_input_ends_in_one_line_and_code_2(tmp_path):
    result = run("compare", "--sparsity", "1.5", "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "sparsity must be in [0, 1), got 1.5" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["compare", "hardware"])
def test_help(command):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
