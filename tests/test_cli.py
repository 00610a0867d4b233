import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from prunekern.cli import app
from prunekern.compare.expected import sentences


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


def test_hardware_of_a_chip_that_is_not_here_is_modelled():
    told = CliRunner().invoke(app, ["hardware", "--chip", "H100 SXM"]).output.splitlines()
    assert told == sentences("H100 SXM")
    as_json = CliRunner().invoke(app, ["hardware", "--chip", "H100 SXM", "--json"]).output
    assert json.loads(as_json) == {"modelled": told}
    refused = run("hardware", "--chip", "H100")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "hardware: chip must be one of A100 80G, H100 SXM" in refused.stderr


@pytest.mark.parametrize("command", ["compare", "hardware"])
def test_help(command):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
