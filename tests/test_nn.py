import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import prunekern
from prunekern.formats import DTYPES, FORMATS, tensor_names
from prunekern.nn import SparseLinear

KERNELS = sorted(FORMATS)


def pruned(llama, kernel, dtype=torch.float32, **changes):
    """A dense model pruned to what the kernel takes, and rounded to it, and its swapped twin."""
    dense = llama(**changes).to(dtype)
    prunekern.prune(dense, FORMATS[kernel].pattern, targets="all-linear")
    sparse = copy.deepcopy(dense)
    prunekern.replace_linears(sparse, kernel, targets="all-linear", prune=False)
    if FORMATS[kernel].bits:
        dense = copy.deepcopy(sparse)
        prunekern.restore_linears(dense)
    return dense, sparse


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def ids():
    return torch.randint(0, 128, (2, 19))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kernel", KERNELS)
def test_swapped_model_computes_the_same(llama, ids, kernel, dtype):
    dense, sparse = pruned(llama, kernel, dtype, attention_bias=True)
    assert sum(isinstance(m, SparseLinear) for m in sparse.modules()) == 14
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(
        logits(sparse, ids), logits(dense, ids), atol=tolerance, rtol=tolerance
    )
    mask = torch.ones_like(ids)
    out = sparse.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert out.shape == (2, 23)


@pytest.mark.parametrize("kernel", KERNELS)
def test_copies_pickles_and_files_hold_the_same_model(llama, ids, kernel):
    _, sparse = pruned(llama, kernel)
    wanted = logits(sparse, ids)
    buffer = io.BytesIO()
    torch.save(sparse, buffer)
    buffer.seek(0)
    again = [
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
        torch.load(buffer, weights_only=False),
    ]
    for model in again:
        assert torch.equal(logits(model, ids), wanted)
    with torch.no_grad():
        again[0].model.layers[0].self_attn.q_proj._tensors[0].zero_()
    assert torch.equal(logits(sparse, ids), wanted)  # a copy shares nothing


@pytest.mark.parametrize("kernel", KERNELS)
def test_state_dict_holds_canonical_tensors_and_loads(llama, ids, kernel):
    _, first = pruned(llama, kernel, attention_bias=True)
    state = first.state_dict()
    names = {k.rsplit(".", 1)[1] for k in state if "q_proj" in k}
    assert names == {"bias", *tensor_names(kernel)}
    torch.manual_seed(99)
    _, second = pruned(llama, kernel, attention_bias=True)
    assert not torch.equal(logits(first, ids), logits(second, ids))
    second.load_state_dict(state)
    assert torch.equal(logits(first, ids), logits(second, ids))


def test_loading_damage_names_the_layer_and_changes_nothing(llama, ids):
    _, model = pruned(llama, "csr")
    wanted = logits(model, ids)
    state = model.state_dict()
    key = "model.layers.1.mlp.up_proj.col_indices"
    state[key] = (state[key].int() + 60).to(torch.uint16)
    with pytest.raises(
        RuntimeError, match=r"layers\.1\.mlp\.up_proj: col_indices must lie in 0\.\.63"
    ):
        model.load_state_dict(state)
    assert torch.equal(logits(model, ids), wanted)
    del state[key]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_to_dtype_packs_anew(llama, ids):
    dense, sparse = pruned(llama, "2:4")
    sparse.to(torch.bfloat16)
    layer = sparse.model.layers[0].self_attn.q_proj
    assert layer.dtype == torch.bfloat16 and layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, dense.model.layers[0].self_attn.q_proj.weight.bfloat16())
    torch.testing.assert_close(
        logits(sparse, ids), logits(dense.bfloat16(), ids), atol=2e-2, rtol=2e-2
    )
    with pytest.raises(ValueError, match="got meta"):
        layer.to("meta")


def test_a_move_packs_for_the_new_device(monkeypatch):
    """Without a second device: what is asked for when the dtype changes stands for it."""
    layer = SparseLinear.from_linear(nn.Linear(8, 4, dtype=torch.float32))
    asked = []

    def default_layout(stem, device, dtype):
        asked.append((stem, device.type, dtype))
        return "reference"

    monkeypatch.setattr("prunekern.nn.default_layout", default_layout)
    weight = layer.weight
    layer.half()
    assert asked == [("sparse24", "cpu", torch.float16)] and layer.layout == "reference"
    assert torch.equal(layer.weight, weight.half())
    layer.to("cpu")
    assert len(asked) == 1  # nothing has changed


def test_layers_without_a_kernel_are_told(llama, monkeypatch):
    monkeypatch.setattr("prunekern.nn.default_layout", lambda *_: "reference")
    monkeypatch.setattr("prunekern.replace.why_reference", lambda *_: "the moon is full")
    model = llama()
    prunekern.prune(model, "2:4", targets="q_proj")
    with pytest.warns(UserWarning, match=r"2 of 2 layers run by the plain torch .*: the moon is"):
        report = prunekern.replace_linears(model, targets="q_proj")
    assert "2:4/reference" in str(report) and "(the moon is full)" in str(report)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_reach_inputs_and_biases(llama, ids, kernel):
    dense, sparse = pruned(llama, kernel, attention_bias=True)
    grads = []
    for model in (dense, sparse):
        x = model.model.embed_tokens(ids).detach().requires_grad_()
        model(inputs_embeds=x).logits.square().sum().backward()
        grads.append((x.grad, model.model.layers[1].self_attn.q_proj.bias.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_compile_through_a_swapped_model(llama, ids):
    _, sparse = pruned(llama, "2:4", num_hidden_layers=1)
    compiled = torch.compile(sparse, fullgraph=True)
    with torch.no_grad():
        ours = compiled(ids, use_cache=False).logits
    torch.testing.assert_close(ours, logits(sparse, ids), atol=1e-4, rtol=1e-3)


def test_inference_mode(llama, ids):
    _, sparse = pruned(llama, "bitmask")
    with torch.inference_mode():
        assert not sparse(ids).logits.requires_grad


@pytest.mark.parametrize("kernel", KERNELS)
def test_restore_gives_the_pruned_weights_back_exactly(llama, kernel):
    dense, sparse = pruned(llama, kernel, attention_bias=True)
    hits = []
    sparse.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: hits.append(1))
    report = prunekern.restore_linears(sparse)
    assert len(report.layers) == 14
    for (name, a), (other, b) in zip(
        dense.state_dict().items(), sparse.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(a, b)
    logits(sparse, torch.zeros(1, 3, dtype=torch.int64))
    assert hits == [1]
    with pytest.raises(ValueError, match="must have SparseLinear layers, got none"):
        prunekern.restore_linears(sparse)


def test_report_and_warning_say_what_was_lost(llama):
    model = llama()
    with pytest.warns(UserWarning, match=r"pruned 4 of 4 layers to 2:4 .*% of their weight energy"):
        report = prunekern.replace_linears(model)
    row = report.layers[0]
    assert row.name == "model.layers.0.self_attn.q_proj" and row.shape == (64, 64)
    assert row.bytes_before == 64 * 64 * 4 and row.bytes_after == 64 * 64 * 2.125
    assert 0.7 < row.energy_kept < 0.95
    assert "q_proj" in str(report) and report.bytes_after < report.bytes_before
    assert report.bytes_after == 2 * (64 * 64 + 32 * 64) * 2.125


def test_no_warning_where_nothing_is_lost(llama):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = llama()
        prunekern.replace_linears(model, "bitmask")
        other = llama()
        prunekern.prune(other, "2:4")
        prunekern.replace_linears(other, "2:4", prune=False)


def unchanged(model, call, message):
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    with pytest.raises(ValueError, match=message):
        call(model)
    assert [id(m) for m in modules] == [id(m) for m in model.modules()]
    after = model.state_dict()
    assert all(torch.equal(a.nan_to_num(), before[k].nan_to_num()) for k, a in after.items())


def _break(model, value):
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = value


def test_bad_input_is_refused_before_anything_changes(llama):
    swap = prunekern.replace_linears
    unchanged(llama(), lambda m: swap(m, "4:2"), "kernel must be one of 2:4, 2:4-int8, ")
    unchanged(llama(), lambda m: swap(m, layout="sm70"), "layout of sparse24 must be one of")
    unchanged(
        llama(), lambda m: swap(m, layout="sm80"), "must have torch.bfloat16 or torch.float16"
    )
    unchanged(
        llama().half(), lambda m: swap(m, layout="sm80"),
        r"q_proj: layout of sparse24 must be one that runs here .*sm80 runs on cuda, not on cpu",
    )  # fmt: skip
    unchanged(llama(), lambda m: swap(m, layout="avx512bf16"), "must have torch.bfloat16 weights")
    unchanged(llama(), lambda m: swap(m, targets="wq"), "must match a Linear layer, got 'wq'")
    unchanged(
        llama(), lambda m: swap(m, prune=False),
        r"layers\.0\.self_attn\.q_proj must be 2:4, got \d+ groups",
    )  # fmt: skip
    for value in (float("nan"), float("inf")):
        model = llama()
        _break(model, value)
        unchanged(model, swap, r"layers\.1\.self_attn\.v_proj must have finite weights, got 1")
    unchanged(llama().double(), swap, "must be float32, bfloat16 or float16, got torch.float64")
    with torch.device("meta"):
        empty = llama()
    with pytest.raises(ValueError, match="meta tensor"):
        swap(empty)


def test_swapping_twice_is_refused(llama):
    model = llama()
    prunekern.replace_linears(model, "csr")
    with pytest.raises(
        ValueError, match=r"must be dense, got a SparseLinear \(csr\); call .*restore"
    ):
        prunekern.replace_linears(model, "2:4")


def test_what_is_not_a_plain_linear_stays_dense_with_a_reason(llama):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = llama()
    first, second = (layer.self_attn for layer in model.model.layers)
    first.q_proj = Scaled(64, 64, bias=False)
    second.o_proj.weight = second.q_proj.weight
    report = prunekern.replace_linears(model, "bitmask", targets=("q_proj", "v_proj"))
    reasons = {row.name: row.reason for row in report.left_dense}
    assert "Scaled may compute more" in reasons["model.layers.0.self_attn.q_proj"]
    assert "also that of model.layers.1.self_attn.o" in reasons["model.layers.1.self_attn.q_proj"]
    assert len(report.replaced) == 2


def test_all_left_dense_is_not_silent(llama):
    model = llama()
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    with pytest.warns(UserWarning, match="every layer was left dense"):
        prunekern.replace_linears(model, "csr", targets="layers.0.mlp.up_proj")


def test_layer_under_two_names_is_swapped_at_both():
    shared = nn.Linear(16, 8)
    model = nn.ModuleDict(
        {"a": nn.ModuleDict({"q_proj": shared}), "b": nn.ModuleDict({"q_proj": shared})}
    )
    prunekern.replace_linears(model, "bitmask", targets="q_proj")
    assert model["a"]["q_proj"] is model["b"]["q_proj"]
    assert isinstance(model["a"]["q_proj"], SparseLinear)
    prunekern.restore_linears(model)
    assert model["a"]["q_proj"] is model["b"]["q_proj"]


def test_negative_zeros_of_a_masked_product_cost_nothing():
    linear = nn.Linear(8, 4, bias=False)
    linear.weight.data = torch.tensor([[-1.0, -2, -3, -4, 5, 6, 7, 8]]).repeat(4, 1)
    linear.weight.data *= torch.tensor([0.0, 0, 1, 1, 0, 1, 0, 1])
    assert SparseLinear.from_linear(linear, "bitmask").canonical().values.numel() == 16
    assert torch.equal(SparseLinear.from_linear(linear, "2:4", prune=False).weight, linear.weight)


@pytest.mark.parametrize("kernel", KERNELS)
def test_odd_shapes_swap_and_run(kernel):
    for n, k in ((1, 1), (7, 13), (3, 66)):
        linear = nn.Linear(k, n)
        sparse = SparseLinear.from_linear(linear, kernel)
        x = torch.randn(2, k)
        torch.testing.assert_close(sparse(x), sparse.to_linear()(x))


def test_from_canonical_validates():
    from prunekern.formats import Sparse24

    bad = Sparse24(values=torch.ones(2, 2), meta=torch.zeros(2, 1, dtype=torch.uint8), shape=(2, 4))
    with pytest.raises(ValueError, match="ascending order"):
        SparseLinear.from_canonical(bad)


_MEMORY = """
import psutil, torch, prunekern, sys
from torch import nn
def block():
    return nn.ModuleDict({"q_proj": nn.Linear(2048, 2048, bias=False)})
model = nn.ModuleDict({f"l{i}": block() for i in range(12)})
prunekern.prune(model, "2:4", targets="q_proj")
warm = block()
prunekern.replace_linears(warm, sys.argv[1], targets="q_proj")
del warm
before = psutil.Process().memory_info().rss
report = prunekern.replace_linears(model, sys.argv[1], targets="q_proj")
print(before - psutil.Process().memory_info().rss, report.bytes_before - report.bytes_after)
"""


@pytest.mark.parametrize("kernel", ["2:4", "bitmask"])
def test_resident_memory_goes_down_by_what_is_saved(kernel):
    run = [sys.executable, "-W", "ignore", "-c", _MEMORY, kernel]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    freed, saved = map(int, out.stdout.split())
    assert saved > 90e6
    assert freed > 0.85 * saved
