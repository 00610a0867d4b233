"""Damages saved folders at random; run by tests/test_fuzz.py, under AddressSanitizer too.

Each damage to a config, an index or a file of weights is either refused with a ValueError, before
or after tensors are read, or it changed nothing but numbers: then the model is what the file holds
and computes. Nothing else may come out, a random weight least of all.
"""

import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import prunekern
from prunekern import _C
from prunekern.checkpoint.files import read_folder
from prunekern.formats import FORMATS

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    44,
    2**31 - 1,
    2**63,
    -(2**70),
    0.5,
    True,
    None,
    "",
    "x",
    [],
    {},
    [[]],
)
STRINGS = (
    "csr",
    "2:4",
    "2:4-int4",
    "bitmask",
    "../x",
    "/etc/passwd",
    "os.system",
    "",
    "model",
    "U8",
    "F32",
)


def make(root: Path) -> list[Path]:
    """One folder a format, and the same in shards."""
    folders = []
    for kernel in FORMATS:
        config = LlamaConfig(vocab_size=16, hidden_size=20, intermediate_size=12,
                             num_hidden_layers=1, num_attention_heads=2,
                             num_key_value_heads=1)  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        prunekern.prune(model, "2:4", targets="all-linear")
        prunekern.replace_linears(model, kernel, targets="all-linear")
        for size in ("5GB", "3KB"):
            folders.append(root / f"{FORMATS[kernel].stem}-{size}")
            prunekern.save_pretrained(model, folders[-1], max_shard_size=size)
    return folders


def mutate(value, rng):
    """Another value of JSON with one thing changed somewhere below it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        changed = dict(value)
        kind = rng.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[rng.choice(STRINGS)] = changed[key]
        else:
            changed[key] = mutate(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [*value[:i], mutate(value[i], rng), *value[i + 1 :]]
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-8, -4, -1, 1, 4, 8))
    return rng.choice(STRINGS if isinstance(value, str) else NUMBERS)


def damage(folder: Path, rng) -> None:
    """Damages one file of a folder."""
    weights = rng.choice(sorted(folder.glob("*.safetensors")))
    index = folder / "model.safetensors.index.json"
    kind = rng.choice(("config", "config", "note", "index", "header", "header", "bytes", "cut"))
    if kind in ("config", "note"):
        config = json.loads((folder / "config.json").read_text())
        if kind == "config":
            changed = mutate(config["quantization_config"], rng)
            # The name stays: without it a folder is not ours, and transformers alone reads it.
            if isinstance(changed, dict):
                config["quantization_config"] = changed | {"quant_method": "prunekern"}
        else:
            note = {"heads": {"0": [2, 1]}, "channels": {"0": 12}}
            config["prunekern"] = mutate(note, rng)
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "index" and index.exists():
        content = json.loads(index.read_text())
        key = rng.choice(sorted(content["weight_map"]))
        content["weight_map"][key] = mutate(content["weight_map"][key], rng)
        index.write_text(json.dumps(content))
    else:
        data = bytearray(weights.read_bytes())
        length = int.from_bytes(data[:8], "little")
        if kind == "header":
            text = json.dumps(mutate(json.loads(data[8 : 8 + length]), rng)).encode()
            data[: 8 + length] = len(text).to_bytes(8, "little") + text
        elif kind == "cut":
            del data[rng.randrange(len(data)) :]
        else:
            where = rng.choice((8, 8 + length, len(data)))
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(where)] ^= 1 << rng.randrange(8)
        weights.write_bytes(data)


def check_loaded(folder: Path, model) -> None:
    """The model holds what the file holds, and computes."""
    infos = read_folder(folder)
    state = model.state_dict()
    assert state.keys() == infos.keys(), state.keys() ^ infos.keys()
    for name, info in infos.items():
        assert state[name].shape == info.shape, name
        assert not state[name].is_meta, name
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.shape == (1, 5, 16)


def main(count: int, seed: int) -> None:
    """Tries `count` damages and prints what became of them."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    refused = loaded = 0
    with tempfile.TemporaryDirectory() as root:
        folders = make(Path(root))
        for i in range(count):
            folder = shutil.copytree(rng.choice(folders), Path(root) / f"damaged-{i}")
            damage(folder, rng)
            try:
                model = AutoModelForCausalLM.from_pretrained(folder)
            except ValueError:
                refused += 1
            else:
                check_loaded(folder, model)
                loaded += 1
            shutil.rmtree(folder)
    print(f"{count} damages: {refused} refused, {loaded} loaded as they are")
    print(f"sanitized: {_C.build_info()['sanitized']}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
