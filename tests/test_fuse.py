"""q, k, v and gate, up as one packed weight and one op: the same model, by every door."""

import copy
import io
import pickle
import threading

import pytest
import structured_models as models
import torch
from torch import nn

import prunekern
from prunekern.formats import FORMATS
from prunekern.fuse import FusedLinear, FusedWeight
from prunekern.nn import SparseLinear
from prunekern.testing import assert_close_to_float64

KERNELS = sorted(FORMATS)


def twins(family="llama_bias", kernel="2:4", dtype=torch.float32, **changes):
    """The same sparse model, apart and fused."""
    apart = models.make(family, **changes).to(dtype)
    prunekern.prune(apart, "2:4", targets="all-linear")
    fused = copy.deepcopy(apart)
    prunekern.replace_linears(apart, kernel, "all-linear")
    report = prunekern.replace_linears(fused, kernel, "all-linear", fuse=True)
    assert report.groups and not any(group.reason for group in report.groups)
    return apart, fused


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture
def ids():
    return models.tokens()


@pytest.fixture
def calls(monkeypatch):
    """Out features of every product of a SparseLinear, in order."""
    seen = []
    product = SparseLinear.product

    def counted(self, x, bias):
        seen.append(self.out_features)
        return product(self, x, bias)

    monkeypatch.setattr(SparseLinear, "product", counted)
    return seen


@pytest.mark.parametrize("family", models.FAMILIES)
def test_fused_model_computes_the_same_in_four_products_a_layer(family, ids, calls):
    apart, fused = twins(family)
    calls.clear()
    ours = models.logits(fused, ids)
    kv = 128 if family == "llama_mha" else 64
    assert calls == [128 + 2 * kv, 96, 2 * 160, 96] * 3
    close(ours, models.logits(apart, ids))
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ours, theirs = (m.generate(ids, attention_mask=mask, **settings) for m in (fused, apart))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_projections_keep_their_own_weights_to_the_bit(kernel):
    apart, fused = twins(kernel=kernel)
    ours, theirs = fused.state_dict(), apart.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = fused.model.layers[1].self_attn, apart.model.layers[1].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        assert getattr(ours, name).nnz == getattr(theirs, name).nnz
        assert torch.equal(getattr(ours, name).weight, getattr(theirs, name).weight)
    assert sum(getattr(ours, f"{n}_proj").nbytes for n in "qkv") == ours.fused.whole.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_each_projection_is_as_exact_as_apart(dtype):
    apart, fused = twins(dtype=dtype)
    x = torch.randn(5, 96).to(dtype)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
        ours, theirs = (m.model.layers[0].get_submodule(name) for m in (fused, apart))
        assert_close_to_float64(ours(x), x, theirs.weight, theirs.bias, name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_copies_pickles_and_state_dicts_hold_the_same_model(kernel, ids):
    _, fused = twins(kernel=kernel)
    wanted = models.logits(fused, ids)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    doors = {
        "deepcopy": copy.deepcopy(fused),
        "pickle": pickle.loads(pickle.dumps(fused)),
        "torch.save": torch.load(buffer, weights_only=False),
    }
    for door, twin in doors.items():
        assert torch.equal(models.logits(twin, ids), wanted), door
        group = twin.model.layers[0].self_attn
        # One weight, the copy's own.
        assert group.q_proj._group is group.k_proj._group is group.fused, door
        assert group.fused is not fused.model.layers[0].self_attn.fused, door
    other = twins(kernel=kernel)[1]
    assert not torch.equal(models.logits(other, ids), wanted)
    other.load_state_dict(fused.state_dict())
    assert torch.equal(models.logits(other, ids), wanted)


def test_state_dicts_go_between_fused_and_apart(ids):
    apart, fused = twins()
    other_apart, other_fused = twins()
    other_apart.load_state_dict(fused.state_dict())
    other_fused.load_state_dict(apart.state_dict())
    close(models.logits(other_apart, ids), models.logits(fused, ids))
    close(models.logits(other_fused, ids), models.logits(fused, ids))


def test_files_hold_projections_and_reload_apart_or_are_fused_again(tmp_path, ids):
    from transformers import AutoModelForCausalLM

    apart, fused = twins("qwen2")
    wanted = models.logits(fused, ids)
    prunekern.save_pretrained(fused, tmp_path / "ours")
    fused.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        back = AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        assert type(back.model.layers[0].self_attn.k_proj) is SparseLinear
        assert all(torch.equal(t, apart.state_dict()[k]) for k, t in back.state_dict().items())
        assert not any(group.reason for group in prunekern.fuse_linears(back))
        assert torch.equal(models.logits(back, ids), wanted)


def test_restored_model_is_as_it_was(ids):
    apart, fused = twins()
    kinds = [type(m) for m in models.make("llama_bias").modules()]
    for model in (apart, fused):
        prunekern.restore_linears(model)
    assert [type(m) for m in fused.modules()] == kinds
    assert torch.equal(models.logits(fused, ids), models.logits(apart, ids))


def test_moving_packs_anew_once_and_keeps_the_memory_counted(ids):
    apart, fused = twins()
    numbers = [n for m in (apart, fused) for n in [sum(b.nbytes for b in m.buffers())]]
    assert numbers[1] <= numbers[0]
    fused.to(torch.bfloat16)
    assert {m.dtype for m in fused.modules() if isinstance(m, SparseLinear)} == {torch.bfloat16}
    assert sum(b.nbytes for b in fused.buffers() if b.is_floating_point()) < numbers[1]
    wanted = models.logits(apart.to(torch.bfloat16), ids)
    torch.testing.assert_close(models.logits(fused, ids), wanted, atol=0.1, rtol=0.05)
    # One projection alone takes its group along.
    attention = fused.model.layers[0].self_attn
    attention.k_proj.to(torch.float32)
    assert attention.q_proj.dtype == attention.k_proj.dtype == torch.float32


def test_gradients_are_those_of_separate_layers(ids):
    apart, fused = twins()
    for checkpointing in (False, True):
        found = []
        for model in (apart, fused):
            model.zero_grad()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.train()(ids, labels=ids).loss.backward()
            found.append({name: p.grad for name, p in model.named_parameters()})
        assert found[0].keys() == found[1].keys()
        assert all(grad is not None for grad in found[1].values())
        for name, grad in found[0].items():
            torch.testing.assert_close(found[1][name], grad, atol=1e-4, rtol=1e-3, msg=name)


def test_hooks_see_each_projection_and_may_change_its_input(ids, calls):
    apart, fused = twins()
    seen = {}
    for key, model in (("apart", apart), ("fused", fused)):
        attention = model.model.layers[0].self_attn
        attention.k_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        attention.v_proj.register_forward_hook(
            lambda module, args, y, key=key: seen.__setitem__(key, y.clone())
        )
    calls.clear()
    ours = models.logits(fused, ids)
    assert len(calls) == 12 + 2  # k_proj's own, and v_proj's, whose x is no longer the last one
    close(ours, models.logits(apart, ids))
    close(seen["fused"], seen["apart"])


def test_hooks_of_before_stay(ids):
    model = models.make("llama")
    heard = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *a: heard.append("up"))
    model.model.layers[0].mlp.register_forward_hook(lambda *a: heard.append("mlp"))
    prunekern.replace_linears(model, targets="all-linear", fuse=True)
    models.logits(model, ids)
    assert heard == ["up", "mlp"]


def test_nothing_is_shared_outside_of_the_parents_forward(calls):
    _, fused = twins()
    mlp = fused.model.layers[0].mlp
    with torch.inference_mode():
        x = torch.randn(3, 96)
        before = mlp.up_proj(x)
        mlp.gate_proj(x)
        x.mul_(2)  # an inference tensor does not count its versions
        after = mlp.up_proj(x)
        mlp(x)
    assert len(calls) == 3 + 2
    close(after - mlp.up_proj.bias, 2 * (before - mlp.up_proj.bias))
    assert mlp.fused.kept is None


def test_nothing_is_kept_after_an_error(ids):
    _, fused = twins()
    mlp = fused.model.layers[0].mlp

    def fail(*_):
        raise KeyError("from a hook")

    hook = mlp.up_proj.register_forward_hook(fail)
    with pytest.raises(KeyError):
        models.logits(fused, ids)
    hook.remove()
    assert mlp.fused.kept is None


def test_threads_do_not_mix_their_products():
    apart, fused = twins()
    inputs = [models.tokens() for _ in range(8)]
    wanted = [models.logits(apart, ids) for ids in inputs]
    wrong = []

    def run(i):
        for _ in range(5):
            if (models.logits(fused, inputs[i]) - wanted[i]).abs().max() > 1e-3:
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compiles_into_one_graph(ids):
    apart, fused = twins(num_hidden_layers=2)
    with torch.no_grad():
        explained = torch._dynamo.explain(fused)(ids)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    found = [str(node.target) for node in explained.graphs[0].graph.nodes]
    ops = [name for name in found if name.startswith("prunekern.sparse24_linear")]
    assert len(ops) == 8
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        with torch.no_grad():
            close(compiled(ids).logits, models.logits(apart, ids))


def test_only_what_is_sparse_and_alike_is_fused(ids):
    model = models.make("llama")
    prunekern.prune(model, targets="all-linear")
    dense = copy.deepcopy(model)
    # q and v, the default targets: k stays dense.
    report = prunekern.replace_linears(model, fuse=True)
    assert [g.parts for g in report.groups] == [("q_proj", "v_proj")] * 3
    assert "3 times fused: q_proj, v_proj" in str(report)
    prunekern.replace_linears(model, "csr", "layers.0.mlp.gate_proj")
    prunekern.replace_linears(model, "2:4", "layers.0.mlp.up_proj")
    (group,) = prunekern.fuse_linears(model)
    assert (group.name, group.reason) == (
        "model.layers.0.mlp",
        "they differ in kernel: 2:4, csr",
    )
    close(models.logits(model, ids), models.logits(dense, ids))


class OwnMLP(nn.Module):
    """Gives its projections different inputs, which nobody could know."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12), nn.Linear(8, 12)

    def forward(self, x):
        return self.gate_proj(x) * self.up_proj(-x)


def test_what_is_not_known_to_share_inputs_is_left_apart():
    model = nn.Sequential(OwnMLP())
    x = torch.randn(2, 8)
    prunekern.prune(model, targets="all-linear")
    wanted = model(x)
    report = prunekern.replace_linears(model, targets="all-linear", fuse=True)
    assert "1 times left apart: gate_proj, up_proj: OwnMLP is not known" in str(report)
    close(model(x), wanted)

    shared = models.make("llama")
    shared.model.layers[1].mlp.up_proj = shared.model.layers[0].mlp.up_proj
    report = prunekern.replace_linears(shared, targets=["gate_proj", "up_proj"], fuse=True)
    reasons = [group.reason for group in report.groups]
    assert reasons == ["a projection is shared with another module"] * 2 + [""]

    patched = models.make("llama")
    attention = patched.model.layers[0].self_attn
    attention.forward = attention.forward
    report = prunekern.replace_linears(patched, targets="all-linear", fuse=True)
    assert report.groups[0].reason == "something else has taken over its forward"

    with pytest.raises(ValueError, match="fuse_linears: model must have SparseLinear layers"):
        prunekern.fuse_linears(models.make("llama"))


def test_damaged_state_dict_changes_nothing(ids):
    _, fused = twins()
    wanted = models.logits(fused, ids)
    state = fused.state_dict()
    key = "model.layers.0.self_attn.k_proj.meta"
    state[key] = torch.zeros_like(state[key])
    with pytest.raises(RuntimeError, match=r"model\.layers\.0\.self_attn\.k_proj"):
        fused.load_state_dict(
            {key: state[key], **{k: v for k, v in state.items() if key[:-4] in k}}, strict=False
        )
    assert torch.equal(models.logits(fused, ids), wanted)


def test_group_is_one_module_in_the_tree():
    _, fused = twins()
    attention = fused.model.layers[0].self_attn
    assert type(attention.fused) is FusedWeight
    assert type(attention).__name__ == "LlamaAttention"
    names = [name for name, m in fused.named_modules() if isinstance(m, SparseLinear)]
    assert len(names) == 21
    assert sum(isinstance(m, FusedLinear) for m in fused.modules()) == 15


def test_compare_times_a_fused_layer_alone(calls):
    from prunekern.compare.variants import alone, variants_for

    rows = variants_for(["2:4", "unstructured"], 0.5, ["bfloat16"], fuse=True, compiled=True)
    names = [row.name for row in rows]
    assert names[:2] == ["dense bfloat16, compiled", "2:4 bfloat16, fused, compiled"]
    assert "unstructured 50% stored dense bfloat16, compiled" in names
    _, fused = twins()
    layer = fused.model.layers[0].mlp.up_proj
    x = torch.randn(2, 96)
    calls.clear()
    close(alone(layer)(x), layer(x))
    assert calls == [160, 320]
    assert alone(fused.model.layers[0].mlp.down_proj) is fused.model.layers[0].mlp.down_proj
