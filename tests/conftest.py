import os
import warnings

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the tests may fetch
warnings.filterwarnings("ignore", category=DeprecationWarning)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers that spin for the same cores are fifty times slower

VOCABULARY = 128


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1234)  # not a seed of random_weight: x and W must not be the same numbers


def tiny_llama(**changes):
    """Two layers, grouped queries: everything that a Llama has, in a few kilobytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


@pytest.fixture
def llama():
    return tiny_llama


@pytest.fixture
def folder(tmp_path, llama):
    """A tiny model with a tokenizer of bytes, as a folder that from_pretrained reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {chr(i): i for i in range(128)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    llama(max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def bits(t: torch.Tensor) -> torch.Tensor:
    """For comparing to the bit: NaN equals itself, -0.0 is not +0.0."""
    return t.contiguous().view(torch.uint8) if t.numel() else t


def absent(what: str):
    """Skips the test for want of a tool; in CI, which has them all, fails it."""
    (pytest.fail if os.environ.get("PRUNEKERN_CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def nvcc():
    """Path of nvcc."""
    from gpu_emulation.compiler import NO_NVCC
    from gpu_emulation.compiler import nvcc as find

    path = find()
    if path is None:
        absent(NO_NVCC)
    return path


@pytest.fixture(scope="session")
def emulate(nvcc):
    """``emulate(source, arch, options)``: a ``Module`` of CUDA C++ (text or path) or PTX."""
    from gpu_emulation import Module
    from gpu_emulation.compiler import cuda_to_ptx

    def make(source, arch="sm_80", options=()):
        is_ptx = isinstance(source, str) and ".address_size" in source
        return Module(source if is_ptx else cuda_to_ptx(source, arch, list(options)))

    return make
