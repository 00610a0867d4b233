"""kernel="auto": each weight gets the storage that is fastest for it here, or stays as it is."""

import pytest
import torch
from torch import nn

import prunekern
from prunekern import timing
from prunekern.formats import FORMATS
from prunekern.nn import SparseLinear
from prunekern.testing import random_weight
from prunekern.timing import DENSE_STORED, EXACT, Stored, fastest_storage, layer_seconds


def model_of(**weights):
    model = nn.Module()
    for name, weight in weights.items():
        layer = nn.Linear(*reversed(weight.shape), bias=False)
        layer.weight = nn.Parameter(weight)
        model.add_module(name, layer)
    return model


@pytest.fixture
def made_up(monkeypatch):
    """Each storage is as many times faster than dense as this says; counts what was timed."""
    factors, timed = {}, []

    def seconds(shape, stored, tokens, dtype, device):
        timed.append((shape, tuple(stored), tuple(tokens)))
        own = {one: 1 / factors.get(one.kernel, 0.5) for one in stored}
        return {M: {DENSE_STORED: 1.0, **own} for M in tokens}

    monkeypatch.setattr(timing, "layer_seconds", seconds)
    monkeypatch.setattr(timing, "_KNOWN", {})
    return factors, timed


def test_auto_takes_what_is_fastest_for_each_weight(made_up):
    factors, timed = made_up
    factors |= {"2:4": 3.0, "bitmask": 2.0}
    free = random_weight("csr", 32, 64, torch.float32, 0.3)
    model = model_of(
        pruned=random_weight("2:4", 32, 64, torch.float32),
        free=free,
        twin=-free.flip(0),
        dense=torch.randn(32, 64),
    )
    before = {name: module.weight.detach().clone() for name, module in model.named_children()}
    report = prunekern.replace_linears(model, "auto", targets="all-linear", tokens=8)
    kernels = {layer.name: layer.kernel for layer in report.layers}
    assert kernels == {"pruned": "2:4", "free": "bitmask", "twin": "bitmask", "dense": "dense"}
    assert "prune it first" in report.left_dense[0].reason
    for name, weight in before.items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    # Weights of one kind are timed once, in every storage that can hold them.
    assert len(timed) == 2 and all(tokens == (8,) for *_, tokens in timed)
    assert {one.kernel for one in timed[0][1]} == set(EXACT)
    assert {one.kernel for one in timed[1][1]} == set(EXACT) - {"2:4"}
    assert {one.sparsity for one in timed[1][1]} <= {0.65, 0.7, 0.75}


def test_auto_leaves_dense_what_nothing_is_faster_for(made_up):
    made_up[0]["csr"] = 1.02  # within the noise
    model = model_of(free=random_weight("csr", 32, 64, torch.float32, 0.5))
    with pytest.warns(UserWarning, match="every layer was left dense: nothing is faster here"):
        report = prunekern.replace_linears(model, "auto", targets="free", tokens=2)
    assert type(model.free) is nn.Linear
    assert report.layers[0].reason == (
        "nothing is faster here at 2 tokens with 50% zeros: csr reaches 1.02x of dense"
    )


def test_auto_refuses_what_it_would_ignore_before_it_changes_anything(made_up):
    model = model_of(a=random_weight("csr", 8, 8, torch.float32), b=torch.full((8, 8), torch.nan))
    for arguments, said in (
        ({"layout": "scalar"}, "layout must be left out for auto"),
        ({"tokens": 0}, "tokens must be a whole number of 1 or more, got 0"),
        ({}, "b must have finite weights"),
    ):
        with pytest.raises(ValueError, match=said):
            prunekern.replace_linears(model, "auto", targets="all-linear", **arguments)
        assert type(model.a) is nn.Linear and not made_up[1]
    with pytest.raises(ValueError, match=r"kernel must be one of 2:4, .*auto, got 'coo'"):
        prunekern.replace_linears(model, "coo")


def test_layers_are_really_timed_each_in_its_own_memory():
    stored = [Stored(kernel, 0.5) for kernel in FORMATS]
    found = layer_seconds((64, 96), stored, [1, 70], torch.bfloat16, torch.device("cpu"))
    assert set(found) == {1, 70}
    for own in found.values():
        assert set(own) == {DENSE_STORED, *stored} and all(0 < s < 1 for s in own.values())
    copies = timing._copies(stored[0], torch.randn(8, 8), torch.float32, torch.device("cpu"), 3)
    pointers = {layer._packed.tensors[0].data_ptr() for layer in copies}
    assert len(pointers) == 3 and all(isinstance(layer, SparseLinear) for layer in copies)


def test_the_choice_is_that_of_the_times_that_were_measured():
    weight = random_weight("csr", 64, 64, torch.float32, 0.2)
    kernel, reason = fastest_storage(weight)
    factors = next(v for k, v in timing._KNOWN.items() if k[0] == (64, 64) and k[1] == 0.8)
    best = max(factors, key=factors.get)
    assert (kernel, reason) == (best, "") or (kernel == "dense" and best in reason)
