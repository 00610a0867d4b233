"""The commands, on a tiny model in a folder: what they write, print and refuse."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from prunekern.cli import app, main
from prunekern.compare.expected import sentences
from prunekern.nn import SparseLinear

COMMANDS = ("advise", "prune", "recover", "compare", "convert", "generate", "hardware")


def invoke(*arguments):
    """Its output; errors come as they are raised."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def sparse(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    output = invoke(command, "--help")
    assert command == "hardware" or "Example" in output


def test_hardware_prints_what_was_built():
    output = invoke("hardware", "--no-measure")
    for word in ("CPU", "GPU", "build", "CUDA", "sparse24", "scalar"):
        assert word in output
    found = json.loads(invoke("hardware", "--no-measure", "--json"))
    assert found["hardware"]["torch"] == torch.__version__
    assert found["acceleration"] is None


def test_hardware_of_a_chip_that_is_not_here_is_modelled():
    told = sentences("H100 SXM")
    assert invoke("hardware", "--chip", "H100 SXM").splitlines() == told
    assert json.loads(invoke("hardware", "--chip", "H100 SXM", "--json")) == {"modelled": told}
    with pytest.raises(ValueError, match=r"^hardware: chip must be one of A100 80G, H100 SXM"):
        invoke("hardware", "--chip", "H100")


@pytest.mark.parametrize(
    "options, kernel, layers",
    [
        ((), "2:4", 4),
        (("--pattern", "unstructured", "--targets", "all-linear"), "bitmask", 14),
        (("--pattern", "unstructured", "--sparsity", "0.95"), "csr", 4),
        (("--pattern", "4:8"), "bitmask", 4),
    ],
)
def test_prune_writes_a_checkpoint_that_reloads(folder, tmp_path, options, kernel, layers):
    out = tmp_path / "out"
    found = json.loads(invoke("prune", out, "--model", folder, "--json", *options))
    assert found["saved"]["folder"] == str(out)
    model = load(out)
    assert model.dtype == torch.bfloat16
    assert [m.kernel for m in sparse(model).values()] == [kernel] * layers
    assert len(found["pruned"]["layers"]) == len(found["saved"]["layers"]) == layers


def test_prune_stores_zeros_where_dense_is_asked_for(folder, tmp_path):
    invoke("prune", tmp_path / "out", "--model", folder, "--kernel", "dense", "--dtype", "float32")
    model = load(tmp_path / "out")
    assert not sparse(model)
    assert (model.model.layers[0].self_attn.q_proj.weight == 0).float().mean() == 0.5


def test_prune_calibrates_and_generate_and_recover_take_what_it_wrote(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    options = ("--model", folder, "--method", "sparsegpt", "--calibration", text)
    small = ("--windows", 2, "--window", 64)
    printed = invoke("prune", tmp_path / "pruned", *options, *small)
    assert "sparsegpt" in printed and "pruned" in printed
    found = json.loads(
        invoke("generate", "Hello", "--model", tmp_path / "pruned", "--tokens", 3, "--json")
    )
    assert found["text"].startswith("Hello") and 1 <= found["tokens"] <= 3
    training = ("--text", text, "--teacher", folder, "--steps", 2, "--batch", 1)
    invoke("recover", tmp_path / "pruned", tmp_path / "better", *training)
    before, after = sparse(load(tmp_path / "pruned")), sparse(load(tmp_path / "better"))
    assert {n: m.kernel for n, m in before.items()} == {n: m.kernel for n, m in after.items()}
    assert any(not torch.equal(before[n].weight, after[n].weight) for n in before)


def test_generate_can_swap_layers_first(folder):
    options = ("--kernel", "csr", "--targets", "all-linear", "--fuse")
    found = invoke("generate", "Hello", "--model", folder, "--tokens", 4, *options)
    assert "tokens/s" in found


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("compare", "--sparsity", "1.5"), "sparsity must be in [0, 1), got 1.5"),
        (("prune", "out", "--kernel", "coo"), "kernel must be one of auto, dense, 2:4"),
        (("prune", "out", "--dtype", "int8"), "dtype must be one of float32"),
        (("generate", "x", "--tokens", "0"), "tokens must be 1 or more, got 0"),
        (("generate", "x", "--model", "/no/such/folder"), "model must be"),
    ],
)
def test_wrong_input_ends_in_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prunekern", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_half_written(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 20000)
    options = ["--model", folder, "--method", "wanda", "--calibration", text, "--windows", "1000"]
    options += ["--window", "512", "--state", tmp_path / "state"]
    command = [sys.executable, "-m", "prunekern", "prune", tmp_path / "out", *options]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "state").exists() and process.poll() is None:
        time.sleep(0.01)  # calibration begins when it is there
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "state", "text.txt"]
