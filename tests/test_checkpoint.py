import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from conftest import bits, tiny_llama
from safetensors import safe_open
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunekern
from prunekern import formats
from prunekern.checkpoint.files import read_folder
from prunekern.formats import DTYPES, FORMATS
from prunekern.nn import SparseLinear

KERNELS = sorted(FORMATS)


def sparse_llama(kernel="2:4", dtype=torch.float32, targets="all-linear", sparsity=0.5, **changes):
    model = tiny_llama(**changes)
    for parameter in model.parameters():  # not .to(), which rounds rotary frequencies for good
        parameter.data = parameter.data.to(dtype)
    pattern = FORMATS[kernel].pattern
    share = sparsity if pattern == "unstructured" else None
    prunekern.prune(model, pattern, sparsity=share, targets=targets)
    prunekern.replace_linears(model, kernel, targets=targets)
    return model


def load(folder, **arguments):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **arguments)


@torch.no_grad()
def logits(model):
    return model(torch.arange(38).view(2, 19)).logits


def tensors_in(folder):
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                assert name not in found
                found[name] = file.get_tensor(name)
    return found


def same_tensors(first, second):
    assert first.keys() == second.keys()
    for name, t in first.items():
        assert t.dtype == second[name].dtype and torch.equal(bits(t), bits(second[name])), name


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_saved_model_comes_back_to_the_bit(tmp_path, kernel, dtype):
    model = sparse_llama(kernel, dtype, attention_bias=True, hidden_size=72, num_attention_heads=6)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_()
    wanted = logits(model)
    saved = prunekern.save_pretrained(model, tmp_path / "model")
    assert torch.equal(logits(model), wanted) and not hasattr(model.config, "quantization_config")
    again = load(tmp_path / "model")
    assert again.dtype == dtype
    assert torch.equal(logits(again), wanted)
    in_file = tensors_in(tmp_path / "model")
    same_tensors(model.state_dict(), in_file)
    same_tensors(again.state_dict(), in_file)
    layers = {n: m for n, m in again.named_modules() if isinstance(m, SparseLinear)}
    assert [row.name for row in saved.layers] == list(layers) and len(layers) == 14
    for name, layer in layers.items():
        assert layer.layout == model.get_submodule(name).layout and layer.kernel == kernel
        assert not layer.training
    assert isinstance(layers["model.layers.0.self_attn.q_proj"].bias, nn.Parameter)


def test_a_fresh_process_gives_the_same_logits(tmp_path):
    model = sparse_llama("bitmask", torch.bfloat16)
    prunekern.save_pretrained(model, tmp_path / "model", max_shard_size=20_000)
    torch.save(logits(model), tmp_path / "wanted")
    script = """
import sys, torch, prunekern
assert "transformers" not in sys.modules
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/model")
with torch.no_grad():
    got = model(torch.arange(38).view(2, 19)).logits
assert torch.equal(got, torch.load(sys.argv[1] + "/wanted"))
out = model.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False, pad_token_id=0)
assert out.shape == (1, 8)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = [sys.executable, "-c", script, str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert out.returncode == 0, out.stderr


def test_files_weigh_what_the_formats_say(tmp_path):
    weights = {"2:4": lambda n, k, nnz: n * k + n * k // 8,
               "2:4-int8": lambda n, k, nnz: n * k * 5 // 8 + 2 * n,
               "2:4-int4": lambda n, k, nnz: n * k * 3 // 8 + 2 * n * -(-k // 64),
               "bitmask": lambda n, k, nnz: 2 * nnz + n * k // 8,
               "csr": lambda n, k, nnz: 4 * nnz + 4 * (n + 1)}  # fmt: skip
    for kernel, formula in weights.items():
        model = sparse_llama(kernel, torch.bfloat16, sparsity=0.7)
        saved = prunekern.save_pretrained(model, tmp_path / kernel)
        expected = sum(2 * p.numel() for p in model.parameters())
        for row in saved.layers:
            nnz = row.shape[0] * row.shape[1]
            nnz -= round(row.zeros * nnz)
            assert row.nbytes == formula(*row.shape, nnz)
            expected += row.nbytes
        assert saved.nbytes == expected
        file = tmp_path / kernel / "model.safetensors"
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert file.stat().st_size == expected + header and header % 8 == 0
        assert expected == sum(info.nbytes for info in read_folder(tmp_path / kernel).values())


def test_shards_keep_a_layer_together_and_under_the_limit(tmp_path):
    model = sparse_llama("csr")
    prunekern.save_pretrained(model, tmp_path / "model", max_shard_size="40KB")
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 3 and not (tmp_path / "model" / "model.safetensors").exists()
    infos = read_folder(tmp_path / "model")
    for name, info in infos.items():
        if name.endswith(".values"):
            assert info.path == infos[name.removesuffix("values") + "crow_indices"].path
    for path in files:
        assert sum(i.nbytes for i in infos.values() if i.path.name == path.name) <= 40_000
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))
    with pytest.raises(ValueError, match='max_shard_size must be bytes or like "5GB", got \'5 old'):
        prunekern.save_pretrained(model, tmp_path / "other", max_shard_size="5 old pounds")


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}])
def test_every_way_to_load_gives_the_same(tmp_path, device_map):
    model = sparse_llama("2:4", torch.bfloat16)
    prunekern.save_pretrained(model, tmp_path / "model", max_shard_size="30KB")
    again = load(tmp_path / "model", device_map=device_map, low_cpu_mem_usage=True)
    assert torch.equal(logits(again), logits(model))


def test_layers_do_not_go_to_where_they_can_not_run(tmp_path):
    prunekern.save_pretrained(sparse_llama(), tmp_path / "model")
    places = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(ValueError, match="device_map must keep sparse layers where they run"):
        load(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_dtype_argument_casts_values(tmp_path, kernel):
    model = sparse_llama(kernel)
    prunekern.save_pretrained(model, tmp_path / "sparse")
    prunekern.restore_linears(model)
    model.save_pretrained(tmp_path / "dense")
    for dtype in (torch.bfloat16, torch.float16):
        sparse, dense = (
            load(tmp_path / "sparse", dtype=dtype),
            load(tmp_path / "dense", dtype=dtype),
        )
        layer = "model.layers.1.mlp.up_proj"
        assert sparse.get_submodule(layer).dtype == dtype
        ours, cast = sparse.get_submodule(layer).weight, dense.get_submodule(layer).weight
        # The scales are cast, and their products with whole numbers rounded once more.
        eps = 1.5 * torch.finfo(dtype).eps if FORMATS[kernel].bits else 0
        torch.testing.assert_close(ours, cast, rtol=eps, atol=0)
    with pytest.raises(
        ValueError, match=r"dtype must be float32, bfloat16 or float16, got torch.f"
    ):
        load(tmp_path / "sparse", dtype=torch.float64)


class _NoDense(TorchDispatchMode):
    """Finds floating-point tensors with data of the shape of a weight."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.found = shapes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and t.is_floating_point() and t.device.type != "meta":
                if tuple(t.shape) in self.shapes:
                    self.found.append((func, t.shape))
        return out


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_dense_weight_is_made_on_the_way(tmp_path, monkeypatch, kernel):
    model = sparse_llama(kernel, hidden_size=112, intermediate_size=208, num_attention_heads=7,
                         num_key_value_heads=1)  # fmt: skip
    prunekern.save_pretrained(model, tmp_path / "model")
    shapes = {row for m in model.modules() if isinstance(m, SparseLinear) for row in [(
        m.out_features, m.in_features)]}  # fmt: skip
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # modes are of one thread
    with _NoDense(shapes) as mode:
        again = load(tmp_path / "model")
    assert not mode.found
    with mode:
        assert again.model.layers[0].mlp.up_proj.weight.shape == (208, 112)
    assert mode.found  # it does find one


@pytest.mark.slow
def test_loading_needs_less_memory_than_dense(tmp_path):
    """Of a process of its own, mapped files included, at 90 % zeros."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8}
    model = sparse_llama("csr", sparsity=0.9, **sizes)
    prunekern.save_pretrained(model, tmp_path / "sparse")
    prunekern.save_pretrained(model, tmp_path / "dense", dense=True)
    script = """
import sys, torch, prunekern
from prunekern.compare.measure import peak_rss_bytes, reset_peak_rss
from transformers import AutoModelForCausalLM, LlamaForCausalLM
for folder in sys.argv[1:]:
    reset_peak_rss()
    before = peak_rss_bytes()
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model(torch.arange(5)[None])
    print(peak_rss_bytes() - before)
    del model
"""
    run = [sys.executable, "-c", script, *map(str, (tmp_path / "sparse", tmp_path / "dense"))]
    out = subprocess.run(run, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    sparse, dense = map(int, out.stdout.split())
    weights = sum(info.nbytes for info in read_folder(tmp_path / "dense").values())
    print(f"weights {weights / 1e6:.1f} MB, dense {dense / 1e6:.1f}, sparse {sparse / 1e6:.1f}")
    assert dense > 0.9 * weights, out.stdout  # it does see what is loaded
    assert sparse < 0.6 * weights, out.stdout


def test_other_kernels_for_other_machines(tmp_path, monkeypatch):
    model = sparse_llama()
    prunekern.save_pretrained(model, tmp_path / "model")
    monkeypatch.setattr("prunekern.nn.default_layout", lambda stem, device, dtype: "scalar")
    again = load(tmp_path / "model")
    layer = again.model.layers[0].mlp.up_proj
    assert layer.layout == "scalar"
    assert torch.equal(layer.weight, model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_sparse_heads(tmp_path, tied):
    targets = "all-linear" if tied else ["lm_head", "q_proj"]
    model = sparse_llama(targets=targets, tie_word_embeddings=tied)
    model.config.tie_word_embeddings = True  # of a head that was untied and pruned, a lie
    prunekern.save_pretrained(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))
    assert isinstance(again.lm_head, SparseLinear) != tied
    assert ("lm_head.weight" in tensors_in(tmp_path / "model")) is False
    if tied:
        assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_model_without_a_head_and_one_with_another(tmp_path):
    from transformers import AutoModel, AutoModelForSequenceClassification

    model = sparse_llama()
    prunekern.save_pretrained(model, tmp_path / "model")
    ids = torch.arange(38).view(2, 19)
    with torch.no_grad():
        wanted = model.model(ids).last_hidden_state
        base = AutoModel.from_pretrained(tmp_path / "model")
        assert torch.equal(base(ids).last_hidden_state, wanted)
        prunekern.save_pretrained(base, tmp_path / "base")
        assert torch.equal(load(tmp_path / "base").model(ids).last_hidden_state, wanted)
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
        assert torch.equal(other.model(ids).last_hidden_state, wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_transformers_own_save_pretrained_reloads(tmp_path, kernel):
    model = sparse_llama(kernel)
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    same_tensors(again.state_dict(), model.state_dict())
    assert any(isinstance(m, SparseLinear) for m in again.modules())
    prunekern.restore_linears(model)
    model.save_pretrained(tmp_path / "dense")
    same_tensors(load(tmp_path / "dense").state_dict(), model.state_dict())
    prunekern.replace_linears(model, kernel, targets=["q_proj"])  # and fewer layers than before
    model.save_pretrained(tmp_path / "fewer")
    same_tensors(load(tmp_path / "fewer").state_dict(), model.state_dict())


def test_restored_models_are_dense_for_everybody(tmp_path):
    model = sparse_llama("csr")
    prunekern.save_pretrained(model, tmp_path / "model")
    again = load(tmp_path / "model")
    prunekern.restore_linears(again)
    assert not any(isinstance(m, SparseLinear) for m in again.modules())
    weights = again.state_dict()
    prunekern.restore_linears(model)
    same_tensors(weights, model.state_dict())
    again.save_pretrained(tmp_path / "plain")
    prunekern.save_pretrained(again, tmp_path / "ours")
    for name in ("plain", "ours"):
        assert "quantization_config" not in json.loads(
            (tmp_path / name / "config.json").read_text()
        )
        same_tensors(load(tmp_path / name).state_dict(), weights)
    dense = load(tmp_path / "model").dequantize()
    same_tensors(dense.state_dict(), weights)


def test_a_loaded_model_is_as_free_as_the_one_that_was_saved(tmp_path):
    prunekern.save_pretrained(sparse_llama(attention_bias=True), tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.half().float().dtype == torch.float32
    again = load(tmp_path / "model").train()
    again(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    layer = again.model.layers[0]
    assert layer.self_attn.q_proj.bias.grad is not None
    assert layer.input_layernorm.weight.grad is not None
    with torch.no_grad():
        layer.self_attn.q_proj.bias.sub_(layer.self_attn.q_proj.bias.grad)
    trained = layer.self_attn.q_proj.bias
    again.save_pretrained(tmp_path / "by_transformers")
    assert torch.equal(logits(load(tmp_path / "by_transformers")), logits(again.eval()))
    prunekern.restore_linears(again)
    assert again.model.layers[0].self_attn.q_proj.bias is trained
    prunekern.replace_linears(again, "bitmask", targets="all-linear")
    prunekern.save_pretrained(again, tmp_path / "model")
    assert load(tmp_path / "model").model.layers[0].mlp.up_proj.kernel == "bitmask"


def test_layers_swapped_after_loading_are_saved_by_transformers_too(tmp_path):
    prunekern.save_pretrained(sparse_llama("csr", targets="q_proj"), tmp_path / "model")
    again = load(tmp_path / "model")
    prunekern.replace_linears(again, "bitmask", targets="up_proj")
    again.save_pretrained(tmp_path / "more")
    layer = load(tmp_path / "more").model.layers[0]
    assert (layer.self_attn.q_proj.kernel, layer.mlp.up_proj.kernel) == ("csr", "bitmask")


def test_dense_export_needs_nothing_of_ours(tmp_path):
    model = sparse_llama("bitmask", torch.bfloat16)
    prunekern.save_pretrained(model, tmp_path / "dense", dense=True)
    assert "prunekern" not in (tmp_path / "dense" / "config.json").read_text()
    again, info = load(tmp_path / "dense", output_loading_info=True)
    assert not any(info.values()) and not hasattr(again, "hf_quantizer")
    prunekern.restore_linears(model)
    same_tensors(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("kernel", [None, "2:4"])
def test_layers_with_their_own_numbers_of_heads_and_channels(tmp_path, kernel):
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=8, mlp_bias=True)
    note = {"heads": {"0": [6, 3], "1": [4, 4]}, "channels": {"1": 40}}
    for i, (query, groups) in ((0, (6, 3)), (1, (4, 4))):
        attention = model.model.layers[i].self_attn
        cut(attention.q_proj, 8 * query)
        cut(attention.k_proj, 8 * groups)
        cut(attention.v_proj, 8 * groups)
        cut(attention.o_proj, None, 8 * query)
        attention.num_key_value_groups = query // groups
    mlp = model.model.layers[1].mlp
    cut(mlp.gate_proj, 40)
    cut(mlp.up_proj, 40)
    cut(mlp.down_proj, None, 40)
    with pytest.raises(
        ValueError, match=r"k_proj.weight must have the shape that model.config say"
    ):
        prunekern.save_pretrained(model, tmp_path / "model")
    model.config.prunekern = note
    if kernel:
        prunekern.replace_linears(model, kernel, targets="all-linear")
    wanted = logits(model)
    prunekern.save_pretrained(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(logits(again), wanted)
    assert again.model.layers[1].self_attn.num_key_value_groups == 1
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    ids = torch.arange(6)[None]
    assert torch.equal(again.generate(ids, **settings), model.generate(ids, **settings))
    again.save_pretrained(tmp_path / "by_transformers")
    assert torch.equal(logits(load(tmp_path / "by_transformers")), wanted)
    with pytest.raises(ValueError, match="layers of one size to be written dense"):
        prunekern.save_pretrained(model, tmp_path / "dense", dense=True)
    if kernel:
        prunekern.restore_linears(again)
        again.save_pretrained(tmp_path / "restored")
        torch.testing.assert_close(logits(load(tmp_path / "restored")), wanted)


def test_what_structured_pruning_left_comes_back(tmp_path):
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=4, intermediate_size=128)
    prunekern.remove_heads(model, heads={0: [0, 1], 1: [2, 3, 4, 5]})
    prunekern.remove_channels(model, channels={0: range(32), 1: range(64)})
    assert set(model.config.prunekern) == {"heads", "channels"}
    prunekern.replace_linears(model, "csr", targets="all-linear")
    prunekern.save_pretrained(model, tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


def cut(linear, rows=None, columns=None):
    linear.weight = nn.Parameter(linear.weight[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None and rows:
        linear.bias = nn.Parameter(linear.bias[:rows].clone())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch, stop):
    model = sparse_llama()
    calls = []

    def interrupt(self):
        calls.append(self)
        if len(calls) > 6:  # of 14, while they are written
            raise stop
        return original(self)

    original = SparseLinear.canonical
    monkeypatch.setattr(SparseLinear, "canonical", interrupt)
    with pytest.raises(stop):
        prunekern.save_pretrained(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    prunekern.save_pretrained(model, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    calls.clear()
    monkeypatch.setattr(SparseLinear, "canonical", interrupt)
    with pytest.raises(stop):
        prunekern.save_pretrained(sparse_llama(), tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interruption_between_the_two_renames_is_undone(tmp_path, monkeypatch):
    prunekern.save_pretrained(sparse_llama(), tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    rename = os.rename

    def interrupt(source, target):
        if str(source).endswith(".new"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prunekern.save_pretrained(sparse_llama("csr"), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_else_is_in_the_folder_stays(tmp_path):
    folder = tmp_path / "model"
    prunekern.save_pretrained(sparse_llama("csr"), folder, max_shard_size="40KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("x")
    prunekern.save_pretrained(sparse_llama(), folder)
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "onnx",
        "tokenizer.json",
    }  # fmt: skip
    assert (folder / "onnx" / "model.onnx").read_text() == "x"
    assert "2:4" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine\n")
    prunekern.save_pretrained(sparse_llama(), folder)
    assert (folder / "README.md").read_text() == "mine\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder must not be a file"):
        prunekern.save_pretrained(sparse_llama(), tmp_path / "file")


def test_a_model_may_be_saved_over_the_file_that_it_is_mapped_from(tmp_path):
    prunekern.save_pretrained(sparse_llama(), tmp_path / "model")
    again = load(tmp_path / "model")
    wanted = logits(again)
    for _ in range(2):
        prunekern.save_pretrained(again, tmp_path / "model")
        assert torch.equal(logits(again), wanted)
    assert torch.equal(logits(load(tmp_path / "model")), wanted)


def test_the_card_says_what_was_pruned_and_what_it_gained(tmp_path):
    class Compared:
        def to_markdown(self):
            return "# title\n\n**Quality**\n\n| variant |\n|---|\n| dense |\n"

    model = sparse_llama("bitmask", sparsity=0.75, targets=["q_proj", "v_proj"])
    model.config.name_or_path = str(tmp_path / "secret")
    prunekern.save_pretrained(model, tmp_path / "model", compare=Compared())
    card = (tmp_path / "model" / "README.md").read_text()
    head = card.split("---\n")[1]
    for line in ("library_name: transformers", "pipeline_tag: text-generation", "- prunekern"):
        assert line in head.splitlines()
    assert "import prunekern" in card and "secret" not in card
    assert re.search(r"\| q_proj \| 2 \| bitmask \| 75\.0% \| 0\.03 \| 0\.01 \|", card)
    assert "| all | 4 |" in card and "**Quality**" in card and "# title" not in card
    model.config.name_or_path = "someone/Some-Model-1.7B"
    prunekern.save_pretrained(model, tmp_path / "dense", dense=True)
    card = (tmp_path / "dense" / "README.md").read_text()
    assert "base_model: someone/Some-Model-1.7B" in card and "import prunekern" not in card


def test_what_can_not_be_saved_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match="must be one of transformers, got Sequential"):
        prunekern.save_pretrained(nn.Sequential(), folder)
    model = tiny_llama()
    nn.utils.prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)
    with pytest.raises(ValueError, match=r"layers.0.mlp.up_proj must have a plain weight"):
        prunekern.save_pretrained(model, folder)
    model = tiny_llama()
    model.model.norm.weight = nn.Parameter(torch.empty(64, device="meta"))
    with pytest.raises(ValueError, match=r"norm.weight must hold data"):
        prunekern.save_pretrained(model, folder)
    model = tiny_llama()
    cut(model.model.layers[0].mlp.up_proj, 90)
    with pytest.raises(ValueError, match=r"up_proj.weight must have the shape .*\[96, 64\], got"):
        prunekern.save_pretrained(model, folder)
    assert not list(tmp_path.iterdir())


def test_a_bare_quantization_config_is_no_way_to_prune(tmp_path):
    from prunekern.checkpoint.quantizer import PrunekernConfig

    tiny_llama().save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"load the model, then call prunekern.replace_linears"):
        load(tmp_path / "dense", quantization_config=PrunekernConfig())


def test_hooks_of_accelerate_move_with_the_layer(tmp_path):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    from prunekern.checkpoint import quantizer
    from prunekern.checkpoint.schema import ModuleSpec
    from prunekern.checkpoint.skeleton import PendingLinear

    c = formats.compress(torch.eye(8), "csr")
    with torch.device("meta"):
        specs = formats.tensor_specs("csr", (8, 8), torch.float32, 8)
        pending = PendingLinear(ModuleSpec("csr", (8, 8)), nn.Linear(8, 8, bias=False), specs)
    for name, t in c.tensors().items():
        setattr(pending, name, t)
    add_hook_to_module(pending, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    model = nn.Sequential(pending)
    config = quantizer.PrunekernConfig()
    quantizer.PrunekernQuantizer(config)._process_model_after_weight_loading(model)
    assert isinstance(model[0], SparseLinear) and hasattr(model[0], "_hf_hook")
    x = torch.randn(3, 8)
    assert torch.equal(model(x), x)


def test_registered_once_and_whenever_transformers_comes(monkeypatch):
    script = """
import importlib, sys
first = sys.argv[1]
importlib.import_module(first)
import prunekern
if first == "torch":
    assert "transformers" not in sys.modules
importlib.reload(prunekern)
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as table
assert table["prunekern"].__name__ == "PrunekernQuantizer", table
importlib.reload(prunekern)
assert not any("prunekern" in type(finder).__module__ for finder in sys.meta_path)
"""
    for first in ("torch", "transformers.quantizers.auto"):
        out = subprocess.run([sys.executable, "-c", script, first], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("version", ["4.57.1", "6.0.0"])
def test_other_releases_of_transformers_are_named(tmp_path, monkeypatch, version):
    import types

    import transformers

    from prunekern.checkpoint import versions

    model = sparse_llama()
    prunekern.save_pretrained(model, tmp_path / "model")
    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(ImportError, match=f"at least 5.0 and below 6.0, got {version}; pip ins"):
        load(tmp_path / "model")
    with pytest.raises(ImportError, match=f"save_pretrained: transformers must .* got {version}"):
        prunekern.save_pretrained(model, tmp_path / "other")
    tables = types.SimpleNamespace(AUTO_QUANTIZER_MAPPING={}, AUTO_QUANTIZATION_CONFIG_MAPPING={})
    versions._register_in(tables)
    with pytest.raises(ImportError, match=f"got {version}"):
        tables.AUTO_QUANTIZATION_CONFIG_MAPPING["prunekern"].from_dict({})


def test_saved_twice_under_two_names(tmp_path):
    model = tiny_llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    prunekern.replace_linears(model, "csr", targets="all-linear")
    wanted = copy.deepcopy(logits(model))
    prunekern.save_pretrained(model, tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model")), wanted)
