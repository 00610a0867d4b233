import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import prunekern
from prunekern.pruning.permutation import _search

IDS = torch.randint(0, 128, (2, 20), generator=torch.Generator().manual_seed(3))


def kept(weight, n, m):
    """Energy by loops, float64."""
    total = left = 0.0
    for row in weight.double().square().tolist():
        for start in range(0, len(row), m):
            group = sorted(row[start : start + m], reverse=True)
            total, left = total + sum(group), left + sum(group[:n])
    return left / total


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("2:4", {}),
        ("2:4", {"attention_bias": True, "mlp_bias": True}),
        ("1:4", {"num_key_value_heads": 4}),
        ("4:8", {"num_key_value_heads": 1}),
        ("2:4", {"head_dim": 32}),  # heads wider than hidden / heads
        ("2:4", {"intermediate_size": 99}),  # a group cut short at the end
        ("1:2", {"hidden_size": 60, "num_attention_heads": 6}),
    ],
)
def test_the_function_stays_and_energy_grows(llama, pattern, changes):
    model = llama(**changes).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(torch.randn_like(p).exp())  # heavy tails, as trained weights have
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    twin = copy.deepcopy(model)
    n, m = map(int, pattern.split(":"))
    report = prunekern.permute_channels(twin, pattern)
    assert len(report.layers) == 4 and "permuted the inputs of 4 of 4" in str(report)
    for layer in report.layers:
        old, new = (net.get_submodule(layer.name).weight for net in (model, twin))
        assert not layer.reason
        assert layer.energy_before == pytest.approx(kept(old, n, m))
        assert layer.energy_after == pytest.approx(kept(new, n, m))
        assert layer.energy_after > layer.energy_before + 1e-4
    with torch.no_grad():
        torch.testing.assert_close(twin(IDS).logits, model(IDS).logits, rtol=1e-9, atol=1e-9)
    before = {name: prunekern.prune(model, pattern, targets=name).layers[0].energy_kept
              for name in ("layers.0.mlp.down_proj", "layers.1.self_attn.o_proj")}  # fmt: skip
    for name, energy in before.items():
        assert prunekern.prune(twin, pattern, targets=name).layers[0].energy_kept > energy


def test_channels_that_were_together_are_dealt_out():
    # The first quarter of channels is large: at 2:4 all of it fits, two to a group.
    energy = torch.full((32, 6), 1e-3)
    energy[:8] += torch.rand(8, 6) + 1
    order = _search(energy, (1, 4), 60, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(32))
    assert ((order.view(8, 4) < 8).sum(1) == 1).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (3, 5), (7, 8), (1, 2)])
def test_energy_never_falls_round_after_round(n, m):
    energy = torch.randn(47, 20).exp()
    last = -1.0
    for rounds in range(1, 15):
        order = _search(energy, (n, m), rounds, torch.Generator().manual_seed(1))
        now = kept(energy.sqrt()[order].T, n, m)
        assert now >= last - 1e-9
        last = now
    assert last > kept(energy.sqrt().T, n, m)
    assert order[47 // m * m :].tolist() == list(range(47 // m * m, 47))


def test_it_is_deterministic(llama):
    model = llama()
    twins = [copy.deepcopy(model) for _ in range(2)]
    reports = [prunekern.permute_channels(twin) for twin in twins]
    assert reports[0] == reports[1]
    for a, b in zip(twins[0].parameters(), twins[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_all_kept_is_left_as_it_is(llama):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    report = prunekern.permute_channels(model, "4:4")
    assert all(layer.energy_before == layer.energy_after == 1 for layer in report.layers)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_what_is_left_alone_has_its_reason(llama):
    model = llama(head_dim=6, num_hidden_layers=4)
    mlps = [layer.mlp for layer in model.model.layers]
    mlps[0].ffn_norm = nn.LayerNorm(96)
    torch.nn.utils.prune.l1_unstructured(mlps[1].up_proj, "weight", 0.5)
    prunekern.replace_linears(model, "csr", targets="layers.2.mlp.down_proj")
    before = copy.deepcopy({k: t for k, t in model.state_dict().items() if "layers.3.mlp" not in k})
    report = prunekern.permute_channels(model)
    reasons = {layer.name.removeprefix("model.layers."): layer.reason for layer in report.layers}
    assert reasons.pop("3.mlp.down_proj") == ""
    assert reasons == {
        **{f"{i}.self_attn.o_proj": "heads of 6 channels cut groups of 4" for i in range(4)},
        "0.mlp.down_proj": "ffn_norm may know the order of channels",
        "1.mlp.down_proj": "up_proj is masked by torch.nn.utils.prune",
        "2.mlp.down_proj": "down_proj is a SparseLinear",
    }
    assert "left alone: ffn_norm" in str(report)
    after = model.state_dict()
    assert all(torch.equal(t, after[k]) for k, t in before.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "unstructured"}, 'pattern must be "N:M"'),
        ({"pattern": "4:2"}, "pattern must"),
        ({"rounds": 0}, "rounds must be 1 or more"),
    ],
)
def test_bad_arguments(llama, arguments, message):
    with pytest.raises(ValueError, match=f"permute_channels: {message}"):
        prunekern.permute_channels(llama(), **arguments)


def test_a_model_without_such_layers_is_an_error():
    with pytest.raises(ValueError, match=r"model must have MLPs .* got Linear"):
        prunekern.permute_channels(nn.Linear(4, 4))
