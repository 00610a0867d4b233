"""Checkpoints of compressed-tensors, made by hand from the description of their bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bits, tiny_llama
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import prunekern
from prunekern.checkpoint import legacy
from prunekern.cli import app

FORMATS = ("sparse-24-bitmask", "sparse-bitmask")


def legacy_tensors(prefix, weight, form):
    """The four or three tensors of one layer, a weight at a time."""
    N, K = weight.shape
    mask = np.zeros((N, K), dtype=bool)
    values = []
    for n in range(N):
        for first in range(0, K, 4):
            group = weight[n, first : first + 4]
            kept = [k for k in range(len(group)) if group[k] != 0]
            if form == "sparse-24-bitmask":  # two in any case
                kept = sorted((kept + [k for k in range(4) if k not in kept])[:2])
            for k in kept:
                mask[n, first + k] = True
                values.append(group[k])
    compressed = torch.stack(values) if values else weight.new_empty(0)
    tensors = {
        f"{prefix}.bitmask": torch.from_numpy(np.packbits(mask, axis=1, bitorder="little")),
        f"{prefix}.shape": torch.tensor([N, K]),
    }
    if form == "sparse-24-bitmask":
        compressed = compressed.view(N, K // 2)
        tensors[f"{prefix}.shape"] = tensors[f"{prefix}.shape"].view(2, 1)
    else:
        starts = np.concatenate([[0], mask.sum(1).cumsum()[:-1]])
        tensors[f"{prefix}.row_offsets"] = torch.from_numpy(starts.astype(np.int64))
    return tensors | {f"{prefix}.compressed": compressed}


def legacy_folder(folder, form, dtype=torch.bfloat16, older=False, shards=1, **settings):
    """Writes a pruned model as compressed-tensors did; returns its dense state dict."""
    model = tiny_llama(**{"hidden_size": 44, "num_attention_heads": 2, "num_key_value_heads": 1,
                          "attention_bias": True, **settings}).to(dtype)  # fmt: skip
    pattern = "2:4" if form == "sparse-24-bitmask" else "unstructured"
    prunekern.prune(model, pattern, targets="all-linear", sparsity=0.5)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0  # fewer than two of four, an empty row
    dense = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = {}
    for name, t in dense.items():
        if "_proj.weight" in name:
            prefix = name if older else name.removesuffix(".weight")
            tensors |= legacy_tensors(prefix, t, form)
        elif not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            tensors[name] = t.clone()
    folder.mkdir()
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
        for shard in set(where.values()):
            part = {name: tensors[name] for name in names if where[name] == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sparsity = {"format": form, "sparsity_structure": "2:4", "targets": ["re:(a+)+$"],
                "ignore": ["lm_head"], "global_sparsity": 0.5}  # fmt: skip
    setting = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": sparsity}
    config = model.config.to_dict() | {
        "compression_config" if older else "quantization_config": setting,
        "architectures": ["LlamaForCausalLM"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "link.json").symlink_to("/etc/hostname")
    return dense


def rewrite(folder, change):
    """Applies `change` to the tensors of a folder, in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"})


def set_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))


def load_state(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if any(isinstance(m, prunekern.SparseLinear) for m in model.modules()):
        kernels = {m.kernel for m in model.modules() if isinstance(m, prunekern.SparseLinear)}
        prunekern.restore_linears(model)
        return model.state_dict(), kernels
    return model.state_dict(), set()


@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
@pytest.mark.parametrize("to", ["prunekern", "dense"])
@pytest.mark.parametrize("form", FORMATS)
def test_converted_weights_are_the_same_to_the_bit(tmp_path, form, to, older):
    dtype = torch.float32 if older else torch.bfloat16
    dense = legacy_folder(tmp_path / "old", form, dtype, older, shards=1 if older else 3)
    saved = prunekern.convert(tmp_path / "old", tmp_path / "new", to, max_shard_size="60KB")
    state, kernels = load_state(tmp_path / "new")
    kernel = "2:4" if form == "sparse-24-bitmask" else "bitmask"
    assert kernels == ({kernel} if to == "prunekern" else set())
    assert state.keys() == dense.keys()
    for name, t in dense.items():
        assert torch.equal(bits(state[name]), bits(t)), name
    assert len(saved.layers) == 14 and {row.format for row in saved.layers} == {kernel}
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {"tokenizer.json", "config.json", "README.md"} <= names
    assert not {"evil.py", "link.json"} & names
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "compression_config" not in config
    assert ("quantization_config" in config) == (to == "prunekern")


def test_ours_becomes_dense(tmp_path):
    model = tiny_llama(mlp_bias=True)
    prunekern.replace_linears(model, "csr", targets="all-linear")
    prunekern.save_pretrained(model, tmp_path / "ours")
    prunekern.convert(tmp_path / "ours", tmp_path / "dense", "dense")
    prunekern.restore_linears(model)
    state, _ = load_state(tmp_path / "dense")
    for name, t in model.state_dict().items():
        assert torch.equal(bits(state[name]), bits(t)), name
    with pytest.raises(ValueError, match=r'a folder of prunekern must be converted to "dense"'):
        prunekern.convert(tmp_path / "ours", tmp_path / "again")
    model.config.prunekern = {"channels": {"0": 96}}
    prunekern.save_pretrained(model, tmp_path / "uneven")
    with pytest.raises(ValueError, match="must have layers of one size to be written dense"):
        prunekern.convert(tmp_path / "uneven", tmp_path / "again", "dense")


def test_nibbles_are_those_of_the_format():
    for i in range(16):
        kept = [k for k in range(4) if i >> k & 1]
        nibble = int(legacy._NIBBLE_OF_BITS[i])
        assert nibble == (kept[0] | kept[1] << 2 if len(kept) == 2 else legacy._INVALID)


P = "model.layers.0.mlp.up_proj"
DAMAGE = {
    "three of four": (0, lambda t: t[f"{P}.bitmask"].__ior__(0b111), "two bits set in every group"),
    "beyond K": (0, lambda t: t[f"{P}.bitmask"][:, -1].__ior__(0xF0), "and none beyond"),
    "short": (0, lambda t: t.update({f"{P}.compressed": t[f"{P}.compressed"][:-1]}),
              r"compressed must be torch.bfloat16 \[96, 22\], got"),
    "float bits": (0, lambda t: t.update({f"{P}.bitmask": t[f"{P}.bitmask"].float()}),
                   "bitmask must be torch.uint8"),
    "int weights": (0, lambda t: t.update({f"{P}.compressed": t[f"{P}.compressed"].char()}),
                    "compressed must be float32, bfloat16 or float16, got torch.int8"),
    "no shape": (0, lambda t: t.pop(f"{P}.shape"), "shape must be two numbers, got None"),
    "large shape": (0, lambda t: t.update({f"{P}.shape": torch.ones(1000).long()}), "two numbers"),
    "negative": (0, lambda t: t[f"{P}.shape"].neg_(), "shape must be two positive int64"),
    "odd K": (0, lambda t: t[f"{P}.shape"].sub_(2), "in_features must be a multiple of 4, got 42"),
    "twice": (0, lambda t: t.update({f"{P}.weight": torch.ones(1)}), "must have one weight, got t"),
    "scales": (0, lambda t: t.update({f"{P}.weight_scale": torch.ones(1)}), "not be quantised"),
    "offsets": (1, lambda t: t[f"{P}.row_offsets"][5:].add_(1), "row_offsets must count the bits"),
    "bit gone": (1, lambda t: t[f"{P}.bitmask"][-1].zero_(), "bitmask must have as many bits set"),
    "no offsets": (1, lambda t: t.pop(f"{P}.row_offsets"), "row_offsets must be torch.int64"),
    "matrix": (1, lambda t: t.update({f"{P}.compressed": t[f"{P}.compressed"][None]}), "at most"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_layers_are_named_and_nothing_is_written(tmp_path, damage):
    form, change, message = DAMAGE[damage]
    legacy_folder(tmp_path / "old", FORMATS[form])
    rewrite(tmp_path / "old", change)
    with pytest.raises(ValueError, match=message):
        prunekern.convert(tmp_path / "old", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "marlin-24"}, "got marlin-24: its weights are 4-bit integers in the order of"),
        (
            {"format": "pack-quantized"},
            "weights must not be quantised, got format 'pack-quantized'",
        ),
        ({"config_groups": {"group_0": {}}}, "weights must not be quantised"),
        ({"sparsity_config": {"format": "dense"}}, "sparsity format must be one of sparse-24-bitm"),
        ({"sparsity_config": {"format": "os.system"}}, r"got \['os.system'\]"),
        ({"sparsity_config": 3}, r"got \[\]"),
        ({"quant_method": "gptq"}, "must be of compressed-tensors or prunekern, got 'gptq'"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_is_not_sparse_is_refused_with_the_reason(tmp_path, changes, message):
    legacy_folder(tmp_path / "old", FORMATS[0])
    set_config(tmp_path / "old", **changes)
    with pytest.raises(ValueError, match=message):
        prunekern.convert(tmp_path / "old", tmp_path / "new")


def test_folders_are_checked_first(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="got no settings"):
        prunekern.convert(tmp_path / "dense", tmp_path / "new")
    with pytest.raises(ValueError, match="target must be a new or empty folder"):
        prunekern.convert(tmp_path / "dense", tmp_path / "dense")
    with pytest.raises(ValueError, match="source must be a folder"):
        prunekern.convert(tmp_path / "none", tmp_path / "new")
    with pytest.raises(ValueError, match="to must be one of prunekern, dense, got 'gguf'"):
        prunekern.convert(tmp_path / "dense", tmp_path / "new", "gguf")
    legacy_folder(tmp_path / "old", FORMATS[0])
    rewrite(tmp_path / "old", lambda t: [t.pop(k) for k in list(t) if "compressed" in k])
    with pytest.raises(ValueError, match="files must hold compressed layers as their config says"):
        prunekern.convert(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_one_layer_is_in_memory_at_a_time(tmp_path, monkeypatch):
    legacy_folder(tmp_path / "old", FORMATS[0])
    alive = []
    original = legacy.canonical_of

    def watch(*args):
        import gc
        import weakref

        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        canonical = original(*args)
        alive.append(weakref.ref(canonical.values))
        return canonical

    monkeypatch.setattr(legacy, "canonical_of", watch)
    prunekern.convert(tmp_path / "old", tmp_path / "new", "dense")
    assert len(alive) == 14


def test_command_line(tmp_path):
    legacy_folder(tmp_path / "old", FORMATS[0])
    arguments = ["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "dense"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "14 sparse layers" in result.output and (tmp_path / "new" / "config.json").exists()
    help_text = CliRunner().invoke(app, ["convert", "--help"]).output
    assert "Example" in help_text
    assert isinstance(CliRunner().invoke(app, arguments).exception, ValueError)
    assert Path(tmp_path / "old").is_dir()
