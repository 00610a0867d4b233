"""What the report measures beyond the rows: limits, the layer against tokens, the map of layers."""

import pytest
import torch
from conftest import VOCABULARY
from torch import nn

import prunekern
from prunekern.compare import limits, sensitivity, sweep
from prunekern.compare.limits import Limits, measure_limits
from prunekern.compare.sensitivity import (
    divergence,
    layer_errors,
    log_probabilities,
    prunings_of,
)


@pytest.fixture
def small(monkeypatch):
    """Measures as little as it can."""
    monkeypatch.setattr(limits, "READ_BYTES", 2**20)
    monkeypatch.setattr(limits, "SQUARES", (64,))
    monkeypatch.setattr(sweep, "TOKENS", (1, 3))
    monkeypatch.setattr(sweep, "ROTATED_BYTES", 2**18)
    monkeypatch.setattr(sweep, "ROUNDS", (3, 3))


def test_limit_is_the_slower_of_reading_and_multiplying():
    found = Limits(10.0, {"float32": 100.0, "bfloat16": 400.0})
    assert found.seconds(50, 100, "float32") == 5.0
    assert found.seconds(50, 1000, "float32") == 10.0
    assert found.seconds(50, 1000, "bfloat16") == 5.0


def test_limits_are_measured(small):
    found = measure_limits({"float32": torch.float32, "bfloat16": torch.bfloat16})
    assert found.bytes_per_s > 1e8 and set(found.flops_per_s) == {"float32", "bfloat16"}
    assert all(flops > 1e7 for flops in found.flops_per_s.values())


def test_commonest_shape_holds_most_weights():
    assert sweep.commonest_shape([(4, 4), (4, 4), (8, 8)]) == (8, 8)
    assert sweep.commonest_shape([(4, 4)] * 5 + [(8, 8)]) == (4, 4)


def test_lines_are_dense_and_each_storage_at_each_sparsity():
    lines = [(v.storage, v.sparsity) for v in sweep.lines_for(["unstructured", "2:4"], "float32")]
    assert lines[0] == ("dense", 0.0) and len(lines) == len(set(lines))
    assert sorted(s for storage, s in lines if storage == "bitmask") == [0.5, 0.7, 0.9]
    assert [s for storage, s in lines if storage == "2:4"] == [0.5]
    assert not any(storage == "dense" for storage, s in lines if s > 0)


def test_contenders_compute_the_pruned_product(small):
    """Each copy of each contender, so that what is timed is the layer and not something like it."""
    N, K = 48, 96
    x = torch.randn(5, K)
    variants = sweep.lines_for(["unstructured", "2:4"], "float32")
    contenders = sweep._contenders((N, K), variants)
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) / K**0.5
    for contender in contenders:
        pruned = nn.ModuleDict({"layer": nn.Linear(K, N, bias=False)})
        pruned["layer"].weight.data = weight.clone()
        variant = contender.variant
        if variant.pattern != "dense":
            share = variant.sparsity if variant.pattern == "unstructured" else None
            prunekern.prune(pruned, variant.pattern, sparsity=share, targets="layer")
        wanted = pruned["layer"].weight
        assert contender.kept == wanted.count_nonzero() and len(contender.copies) >= 2
        with torch.inference_mode():
            for call in contender.copies:
                torch.testing.assert_close(call(x), x @ wanted.t())


def test_sweep_says_what_binds(small):
    found = sweep.measure_sweep((48, 96), ["unstructured", "2:4"], ["float32", "bfloat16"], 1)
    assert found["shape"] == [48, 96] and found["tokens"] == [1, 3]
    for line in found["lines"]:
        element = 4 if line["dtype"] == "float32" else 2
        kept = round(48 * 96 * (1 - line["sparsity"]))
        for t in (1, 3):
            read = line["bytes"][str(t)] / found["limits"]["bytes_per_s"]
            done = line["flops"][str(t)] / found["limits"]["flops_per_s"][line["dtype"]]
            assert line["bytes"][str(t)] == line["weight_bytes"] + t * (48 + 96) * element
            assert line["flops"][str(t)] == 2 * t * kept
            assert line["limit_ms"][str(t)] == pytest.approx(1e3 * max(read, done))
            assert line["bound"][str(t)] == ("bytes" if read >= done else "FLOPs")
            assert line["ms"][str(t)] > 0
        if line["storage"] == "dense":
            assert set(line["speedup"].values()) == {1.0}
    layouts = {line["storage"]: line["layout"] for line in found["lines"]}
    assert layouts["dense"] == "" and layouts["2:4"] != ""


def test_integers_are_limited_by_their_bytes_alone():
    variant = sweep.lines_for(["2:4"], "float32")[1]
    for integer, limit in ((False, 16.0), (True, 0.5)):
        contender = sweep.Contender(variant, "", nbytes=1, kept=8, integer=integer, copies=[])
        line = sweep._line(
            contender, (0, 0), "float32", Limits(2.0, {"float32": 1.0}), {1: ([32.0], [20.0])}
        )
        assert line["limit_ms"]["1"] == 1e3 * limit and line["limit_speedup"]["1"] == 32 / limit
        assert line["bound"]["1"] == ("bytes" if integer else "FLOPs")
        assert line["speedup"]["1"] == 1.6 and line["flops"]["1"] == 16


def test_rounds_take_turns_and_the_first_is_not_counted(monkeypatch):
    monkeypatch.setattr(sweep, "ROUNDS", (3, 4))
    turns = []
    seconds = sweep._rounds([lambda i=i: turns.append(i) for i in range(3)])
    assert turns == [0, 1, 2] * 5 and [len(s) for s in seconds] == [4, 4, 4]
    monkeypatch.setattr(sweep, "CELL_SECONDS", 0.0)
    assert len(sweep._rounds([lambda: None])[0]) == 3


def test_error_of_a_layer_is_that_of_its_output_in_the_model(llama):
    model = llama()
    prunings = prunings_of(["unstructured", "2:4"], 0.6)
    assert [p.label for p in prunings] == ["unstructured 60%", "2:4"]
    window = torch.randint(0, VOCABULARY, (1, 40))
    inputs = {}
    name = "model.layers.1.mlp.down_proj"
    module = model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda module, args: inputs.update({name: args[0]}))
    model(window)
    hook.remove()
    before = {n: p.clone() for n, p in model.named_parameters()}
    layers = layer_errors(model, ["down_proj"], prunings, window)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert len(layers) == 14 and not any("lm_head" in layer["name"] for layer in layers)
    assert [layer["name"] for layer in layers if layer["pruned"]] == [
        f"model.layers.{i}.mlp.down_proj" for i in range(2)
    ]
    found = next(layer for layer in layers if layer["name"] == name)
    assert (found["block"], found["module"]) == (1, "down_proj")
    x, weight = inputs[name][0].double(), module.weight.detach().double()
    for pruning, share in zip(prunings, (0.6, None), strict=True):
        twin = nn.ModuleDict({"layer": nn.Linear(*weight.t().shape, bias=False)})
        twin["layer"].weight.data = module.weight.detach().clone()
        prunekern.prune(twin, pruning.pattern, sparsity=share, targets="layer")
        pruned = twin["layer"].weight.detach().double()
        error = (x @ (weight - pruned).t()).square().sum() / (x @ weight.t()).square().sum()
        assert found["error"][pruning.label] == pytest.approx(error.item(), rel=1e-4)
        kept = pruned.square().sum() / weight.square().sum()
        assert found["energy_kept"][pruning.label] == pytest.approx(kept.item(), rel=1e-4)


def test_divergence_is_that_of_the_model_with_one_layer_pruned(llama):
    model, twin = llama(), llama()
    twin.load_state_dict(model.state_dict())
    window = torch.randint(0, VOCABULARY, (1, 40))
    pruning = sensitivity.Pruning("2:4", "2:4", 0.5)
    name = "model.layers.0.mlp.up_proj"
    dense = log_probabilities(model, window)
    found = divergence(model, name, pruning, window, dense)
    prunekern.prune(twin, "2:4", targets=name)
    with torch.no_grad():
        p, q = (m.double()(window).logits[0].softmax(-1) for m in (model, twin))
    assert found == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-2) and found > 0
    assert torch.equal(log_probabilities(model.float(), window), dense)
