"""Folders that nobody vouches for: refused, and the file or the layer is named."""

import json
import os
import shutil

import pytest
import torch
from conftest import tiny_llama
from safetensors.torch import load_file, save_file

import prunekern
from prunekern.checkpoint.files import read_folder, read_json
from prunekern.checkpoint.schema import parse_modules, parse_structure

P = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each format, in one file and in several."""
    root = tmp_path_factory.mktemp("saved")
    for kernel, name in (("2:4", "sparse24"), ("csr", "csr"), ("bitmask", "bitmask")):
        model = tiny_llama(hidden_size=44, num_attention_heads=2, num_key_value_heads=1)
        prunekern.prune(model, "2:4", targets="all-linear")
        prunekern.replace_linears(model, kernel, targets="all-linear")
        prunekern.save_pretrained(model, root / name)
        prunekern.save_pretrained(model, root / f"{name}-shards", max_shard_size="40KB")
    return root


@pytest.fixture
def folder(saved, tmp_path):
    def copy(name):
        return shutil.copytree(saved / name, tmp_path / "model")

    return copy


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"})


def change_header(folder, change):
    """Applies `change` to the text of the header, and sets its length."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length].decode())
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + data[8 + length :])


CONFIGS = {
    "unknown key": (lambda q: q.update(loader="os.system"), r"keys must be .* and \['loader'\]"),
    "newer": (lambda q: q.update(version=2), "version must be 1, got 2; a newer"),
    "list": (lambda q: q.update(modules=[P]), "modules must map names to formats"),
    "code": (lambda q: q["modules"][P].update(format="torch.load"), "format .* got 'torch.load'"),
    "callable": (lambda q: q["modules"][P].update(cls="x"), "must have format and shape"),
    "one size": (lambda q: q["modules"][P].update(shape=[96]), "must be 2 whole numbers"),
    "bool": (lambda q: q["modules"][P].update(shape=[True, 44]), "must be 2 whole numbers"),
    "huge": (lambda q: q["modules"][P].update(shape=[2**40, 44]), "must be 2 whole numbers from"),
    "other shape": (lambda q: q["modules"][P].update(shape=[44, 96]), r"must be \[96, 44\] as in"),
    "no such layer": (lambda q: q["modules"].update({"os": q["modules"][P]}), "os must be an nn"),
    "not linear": (lambda q: q["modules"].update(model=q["modules"][P]), "model must be an nn.Lin"),
    "attribute": (lambda q: q["modules"].update({f"{P}.__class__": q["modules"][P]}), "must be an"),
    "embedding": (lambda q: q["modules"].update({"model.embed_tokens": q["modules"][P]}),
                  "model.embed_tokens must be an nn.Linear"),
    "one less": (lambda q: q["modules"].pop(P), f"got none for {P}.weight"),
    "other format": (lambda q: q["modules"][P].update(format="bitmask"), "values must be torch"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_say_more_than_names_and_numbers(folder, case):
    change, message = CONFIGS[case]
    folder = folder("sparse24")
    change_config(folder, lambda config: change(config["quantization_config"]))
    with pytest.raises(ValueError, match=message):
        load(folder)


TENSORS = {
    "missing": (lambda t: t.pop(f"{P}.meta"), "meta must be torch.uint8 .* got nothing"),
    "no values": (lambda t: t.pop(f"{P}.values"), "values must be in the file as .* got nothing"),
    "short": (lambda t: t.update({f"{P}.meta": t[f"{P}.meta"][:-1]}), r"meta must be .*\[96, 6\]"),
    "dtype": (lambda t: t.update({f"{P}.meta": t[f"{P}.meta"].int()}), "meta must be torch.uint8"),
    "integers": (lambda t: t.update({f"{P}.values": t[f"{P}.values"].int()}), "got torch.int32"),
    "dense too": (lambda t: t.update({f"{P}.weight": torch.ones(96, 44)}), r"weight'\] besides"),
    "norm gone": (lambda t: t.pop("model.norm.weight"), "got none for model.norm.weight"),
    "nibble": (lambda t: t[f"{P}.meta"][7].fill_(0b1010), f"{P}: meta must hold two positions"),
    "tail": (lambda t: t[f"{P}.meta"][7, -1].fill_(0xE4), f"{P}: meta must hold"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(folder, case):
    change, message = TENSORS[case]
    folder = folder("sparse24")
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_an_embedding_that_is_tied_to_nothing(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    prunekern.replace_linears(model, "csr")
    prunekern.save_pretrained(model, tmp_path / "model")
    change_tensors(tmp_path / "model", lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"got none for model.embed_tokens.weight, lm_head.weight"):
        load(tmp_path / "model")


@pytest.mark.parametrize("kernel", ["csr", "bitmask"])
def test_counts_must_agree(folder, kernel):
    folder = folder(kernel)
    change_tensors(folder, lambda t: t.update({f"{P}.values": t[f"{P}.values"][:-1]}))
    with pytest.raises(ValueError, match=f"{P}: (col_indices|bitmask) must"):
        load(folder)
    change_tensors(folder, lambda t: t.update({f"{P}.values": torch.ones(96 * 44 + 1)}))
    with pytest.raises(ValueError, match="values must be fewer than weights"):
        load(folder)


def test_not_a_number_is_a_number_as_in_dense_files(folder):
    folder = folder("csr")
    change_tensors(folder, lambda t: t[f"{P}.values"].fill_(torch.nan))
    with torch.no_grad():
        assert load(folder)(torch.arange(8)[None]).logits.isnan().all()


def share(text, name, other):
    header = json.loads(text)
    header[f"{name}.values"] = header[f"{other}.values"]
    return json.dumps(header)


HEADERS = {
    "not json": (lambda s: "]" + s, "model.safetensors: must be JSON"),
    "deep": (lambda s: "[" * 100_000, "must be JSON, got RecursionError"),
    "a list": (lambda s: "[]", "must be a JSON object, got list"),
    "twice": (lambda s: s[:-1].rstrip("} ") + f'}}, "{P}.meta": {{}}}}', "keys must be unique"),
    "dtype": (lambda s: s.replace('"U8"', '"object"', 1), "dtype must be one of"),
    "no dtype": (lambda s: s.replace('"dtype"', '"kind"', 1), "must have dtype, shape and data"),
    "negative": (lambda s: s.replace('"shape":[', '"shape":[-', 1), "shape must be whole numbers"),
    "float": (lambda s: s.replace('"shape":[44', '"shape":[44.0', 1), "shape must be whole"),
    "enormous": (lambda s: s.replace('"shape":[44', '"shape":[' + "9" * 30, 1), "must be whole"),
    "overlap": (lambda s: s.replace('"data_offsets":[0,', '"data_offsets":[-8,', 1), "must span"),
    "metadata": (lambda s: s.replace('{"format":"pt"}', '["pt"]'), "must be a safetensors file"),
    "too few": (lambda s: s.replace('"shape":[44]', '"shape":[1]'), "must span 4 bytes"),
    "shared": (lambda s: share(s, P, P.replace("1", "0")), "tensors must lie back to back"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(folder, case):
    change, message = HEADERS[case]
    folder = folder("sparse24")
    change_header(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["sparse24", "csr", "bitmask"])
def test_tensors_may_lie_at_any_byte(folder, name):
    folder = folder(name)
    with torch.no_grad():
        wanted = load(folder)(torch.arange(8)[None]).logits
        for _ in range(3):
            change_header(folder, lambda s: s + " ")
            assert torch.equal(load(folder)(torch.arange(8)[None]).logits, wanted)


@pytest.mark.parametrize("size", [0, 5, 8, 200, 5000, -1, -3000])
def test_truncated_files(folder, size):
    folder = folder("bitmask")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model.safetensors: .*(truncated|must be JSON)"):
        load(folder)


def test_files_that_are_too_long(folder):
    folder = folder("bitmask")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    with pytest.raises(ValueError, match=r"tensors must take .* bytes as the header says"):
        load(folder)
    path.write_bytes((2**62).to_bytes(8, "little") + data[8:])
    with pytest.raises(ValueError, match="header must fit in the file"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "sub/../../outside.safetensors", "{root}/outside.safetensors",
     "link.safetensors"],
)  # fmt: skip
def test_ways_out_of_the_folder(folder, tmp_path, name):
    folder = folder("csr-shards")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    (folder / "sub").mkdir()
    shutil.move(folder / first, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    name = name.format(root=tmp_path)
    for key, value in index["weight_map"].items():
        index["weight_map"][key] = name if value == first else value
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must lie in the folder of the checkpoint, got"):
        load(folder)
    with pytest.raises(ValueError, match=r"must lie in the folder|must be a plain name that ends"):
        read_folder(folder)


def test_links_of_the_cache_are_followed(folder, tmp_path):
    source = folder("csr-shards")
    (source / "tokenizer.json").write_text("{}")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(source.iterdir())):
        shutil.move(path, blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert load(snapshot).model.layers[0].mlp.up_proj.kernel == "csr"
    assert len(read_folder(snapshot)) > 40
    prunekern.convert(snapshot, tmp_path / "dense", "dense")
    assert (tmp_path / "dense" / "tokenizer.json").read_text() == "{}"


def test_a_tensor_in_two_files(folder):
    folder = folder("csr-shards")
    files = sorted(folder.glob("*.safetensors"))
    tensors = load_file(files[1]) | {"model.embed_tokens.weight": torch.ones(128, 44)}
    save_file(tensors, files[1], metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight must stand in one file"):
        load(folder)


def test_indexes_that_do_not_agree(folder):
    folder = folder("csr-shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"]
    files = sorted(set(where.values()))
    for change, message in (
        ({"weight_map": {**where, "x": files[0]}}, f"x must be in {files[0]}, got None"),
        ({"weight_map": {**where, "lm_head.weight": files[0]}}, "lm_head.weight must be in"),
        ({"weight_map": {**where, "x": 3}}, "weight_map must map names of tensors to files"),
        ({"weight_map": {**where, "x": "model.bin"}}, "must be a plain name that ends with"),
        ({}, "weight_map must map"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(ValueError, match=message):
            read_folder(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"folder must hold model.safetensors or model.safet"):
        read_folder(folder)


def test_pickles_are_not_read(folder):
    folder = folder("csr")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights must be in safetensors files"):
        load(folder)


def test_a_fifo_is_not_waited_for(folder):
    folder = folder("csr-shards")
    path = sorted(folder.glob("*.safetensors"))[0]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="must be a file"):
        load(folder)


def test_json_files(tmp_path):
    path = tmp_path / "config.json"
    for text, message in (
        ('{"a": 1, "a": 2}', "keys must be unique, got 'a' twice"),
        ("{", "must be JSON"),
        ('"x"', "must be a JSON object, got str"),
        ("\xff", "must be JSON"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=message):
            read_json(path)
    with pytest.raises(ValueError, match="must be a file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").symlink_to(path)
    with pytest.raises(ValueError, match="must lie in the folder of the checkpoint"):
        read_json(tmp_path / "sub" / "config.json")


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"heads": {"0": [3, 2]}}, "must be a multiple of its 2 key/value heads, got 3"),
        ({"heads": {"0": [0, 1]}}, "must be 2 whole numbers from 1"),
        ({"heads": {"-1": [2, 1]}}, "must be by index of the layer, got '-1'"),
        ({"heads": {"0": [2, 1], "00": [2, 1]}}, "must name a layer once"),
        ({"heads": [[2, 1]]}, "must map layers to sizes"),
        ({"channels": {"0": 2.0}}, "channels of layer 0 must be 1 whole numbers"),
        ({"code": "x"}, "must hold heads and channels"),
        ("x", "must hold heads and channels"),
    ],
)
def test_notes_of_structured_pruning(note, message):
    with pytest.raises(ValueError, match=message):
        parse_structure(note)


def test_notes_for_layers_that_are_not_there(folder):
    folder = folder("csr")
    change_config(folder, lambda config: config.update(prunekern={"channels": {"2": 4}}))
    with pytest.raises(ValueError, match=r"layers must be below 2, got \[2\]"):
        load(folder)
    change_config(folder, lambda config: config.update(prunekern={"channels": {"1": 4}}))
    with pytest.raises(ValueError, match=r"down_proj must be \[44, 4\] as in the model, got"):
        load(folder)


def test_modules_are_names_and_numbers():
    assert parse_modules({"a": {"format": "csr", "shape": [3, 4]}}, 1)["a"].shape == (3, 4)
    for name in ("", 3):
        with pytest.raises(ValueError, match="a module must have a name"):
            parse_modules({name: {"format": "csr", "shape": [3, 4]}}, 1)
