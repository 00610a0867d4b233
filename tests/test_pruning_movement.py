import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from prunekern.pruning import MovementPruner, cubic_sparsity
from prunekern.pruning.masks import layer_mask


def model():
    return nn.Sequential(nn.Linear(12, 10, dtype=torch.float64), nn.Linear(10, 5).double())


def data():
    return torch.randn(30, 12).double(), torch.randn(30, 5).double()


def loss_of(net, x, y):
    return (net(x) - y).square().mean()


def written_out(net, scores, sparsity, x, y):
    """Gradients of both weights' W' by the chain rule, by hand; float64."""
    masks = [layer_mask(s, sparsity) for s in scores]
    masked = [layer.weight * m for layer, m in zip(net, masks, strict=True)]
    hidden = x @ masked[0].T + net[0].bias
    out = hidden @ masked[1].T + net[1].bias
    d_out = 2 * (out - y) / y.numel()
    gradients = [(d_out @ masked[1]).T @ x, d_out.T @ hidden]
    d_scores = [g * layer.weight for g, layer in zip(gradients, net, strict=True)]
    return d_scores, [g * m for g, m in zip(gradients, masks, strict=True)]


def test_gradients_are_those_written_out():
    net = model()
    plain, (x, y) = copy.deepcopy(net), data()
    pruner = MovementPruner(net, targets="all-linear")
    pruner.set_sparsity(0.4)
    scores = list(pruner.scores())
    with torch.no_grad():
        for s in scores:
            s.copy_(torch.randn_like(s))
    loss_of(net, x, y).backward()
    with torch.no_grad():
        d_scores, d_weights = written_out(plain, [s.detach() for s in scores], 0.4, x, y)
    for layer, s, d_score, d_weight in zip(net, scores, d_scores, d_weights, strict=True):
        torch.testing.assert_close(s.grad.double(), d_score, rtol=1e-5, atol=1e-8)
        original = layer.parametrizations.weight.original
        torch.testing.assert_close(original.grad, d_weight)
        mask = layer.weight != 0
        assert (s.grad[~mask] != 0).all()  # dense: what went can come back
        assert not original.grad[~mask].any() and (original.grad[mask] != 0).all()


def test_scores_add_up_movement_with_its_sign():
    net, (x, y) = model(), data()
    plain = copy.deepcopy(net)
    pruner = MovementPruner(net, targets="all-linear")
    optimizer = torch.optim.SGD(
        [
            {"params": [layer.parametrizations.weight.original for layer in net], "lr": 0.05},
            {"params": pruner.scores(), "lr": 0.01},
        ]
    )
    expected = [torch.zeros_like(s) for s in pruner.scores()]
    for _ in range(7):
        with torch.no_grad():
            for layer, mine in zip(plain, net, strict=True):
                layer.weight.copy_(mine.parametrizations.weight.original)
            d_scores, _ = written_out(plain, expected, 0.0, x, y)
        for total, d in zip(expected, d_scores, strict=True):
            total -= 0.01 * d
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    got = list(pruner.scores())
    for s, e in zip(got, expected, strict=True):
        torch.testing.assert_close(s.detach(), e.float(), rtol=1e-4, atol=1e-8)
        assert (s < 0).any() and (s > 0).any()
    # Ranked with the sign: those that shrank go, not those that moved little.
    pruner.set_sparsity(0.3)
    for layer, s in zip(net, got, strict=True):
        gone = layer.weight == 0
        assert s[gone].max() <= s[~gone].min()


def test_a_weight_that_grows_scores_and_one_that_shrinks_does_not():
    net = nn.Sequential(nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[-1.0, 1.0]])
    pruner = MovementPruner(net, targets="all-linear")
    weight, (scores,) = net[0].parametrizations.weight.original, pruner.scores()
    optimizer = torch.optim.SGD([weight, scores], lr=0.1)
    net(torch.tensor([[1.0, 1.0]])).backward()  # both weights move down: -1 away from zero
    optimizer.step()
    assert weight[0, 0] < -1 and 0 < weight[0, 1] < 1
    assert scores[0, 0] > 0 > scores[0, 1]


def test_what_went_comes_back_when_its_score_does():
    net = nn.Sequential(nn.Linear(4, 2))
    pruner = MovementPruner(net, targets="all-linear")
    pruner.set_sparsity(0.5)
    (scores,) = pruner.scores()
    dense = net[0].parametrizations.weight.original.detach().clone()
    gone = net[0].weight == 0
    assert gone.sum() == 4
    with torch.no_grad():
        scores[gone] = 1.0
    assert torch.equal(net[0].weight, torch.where(gone, dense, 0.0))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_finish_leaves_plain_layers_with_zeros(pattern):
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)).bfloat16()
    pruner = MovementPruner(net, pattern, targets="0", scope="row" if pattern != "2:4" else "layer")
    if pattern == "unstructured":
        pruner.set_sparsity(0.5)
    (scores,) = pruner.scores()
    assert scores.dtype == torch.float32
    with torch.no_grad():
        scores.copy_(torch.randn_like(scores))
    y = net[0](torch.ones(1, 16, dtype=torch.bfloat16))
    report = pruner.finish()
    assert type(net[0]) is nn.Linear and isinstance(net[0].weight, nn.Parameter)
    assert [name for name, _ in net.named_parameters()] == [
        "0.bias", "0.weight", "1.weight", "1.bias"
    ] or len(list(net.parameters())) == 4  # fmt: skip
    assert torch.equal(net[0](torch.ones(1, 16, dtype=torch.bfloat16)), y)
    zeros = net[0].weight == 0
    assert (zeros.sum(1) == 8).all() and not torch.signbit(net[0].weight[zeros]).any()
    assert report.method == "movement" and report.sparsity == 0.5 and report.layers[0].name == "0"


def test_soft_movement_keeps_what_passes_the_threshold():
    net = nn.Sequential(nn.Linear(16, 8))
    pruner = MovementPruner(net, targets="all-linear", soft=True, threshold=0.2)
    (scores,) = pruner.scores()
    assert (net[0].weight != 0).all()
    with torch.no_grad():
        scores.copy_(torch.randn_like(scores) * 3)
    assert torch.equal(net[0].weight != 0, scores.sigmoid() > 0.2)
    penalty = pruner.penalty()
    assert penalty.item() == pytest.approx(scores.sigmoid().mean().item())
    penalty.backward()
    expected = scores.sigmoid() * (1 - scores.sigmoid()) / scores.numel()
    torch.testing.assert_close(scores.grad, expected.detach())
    with pytest.raises(ValueError, match="sparsity of soft movement must be left alone"):
        pruner.set_sparsity(0.5)
    assert pruner.finish().method == "soft movement"


def test_cubic_schedule():
    def at(step):
        return cubic_sparsity(step, 100, 0.8, warmup=10, cooldown=30)

    assert [at(s) for s in (0, 10)] == [0, 0] and [at(s) for s in (70, 99, 100)] == [0.8] * 3
    assert at(40) == pytest.approx(0.8 * (1 - 0.5**3))  # half way: seven eighths are gone
    assert all(at(s) < at(s + 1) for s in range(10, 70))
    assert cubic_sparsity(0, 10, 0.9, initial=0.3) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="warmup and cooldown must leave steps between"):
        cubic_sparsity(0, 10, 0.5, warmup=5, cooldown=5)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1"):
        cubic_sparsity(0, 10, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "5:4"}, "pattern must"),
        ({"scope": "global"}, "scope must be layer or row"),
        ({"pattern": "2:4", "soft": True}, "pattern must be unstructured if soft"),
        ({"soft": True, "threshold": 0.5}, "threshold must be in"),
        ({"targets": "up"}, "must match"),
    ],
)
def test_bad_arguments(arguments, message):
    net = model()
    with pytest.raises(ValueError, match=message):
        MovementPruner(net, **{"targets": "all-linear", **arguments})
    assert type(net[0]) is nn.Linear


def test_a_masked_or_parametrized_layer_is_refused():
    net = model()
    MovementPruner(net, targets="0")
    with pytest.raises(ValueError, match="0 must have a plain weight"):
        MovementPruner(net, targets="all-linear")
    other = model()
    torch.nn.utils.prune.l1_unstructured(other[1], "weight", 0.5)
    with pytest.raises(ValueError, match="1 must have a plain weight"):
        MovementPruner(other, targets="all-linear")
    assert type(other[0]) is nn.Linear
    pruner = MovementPruner(model(), targets="0", pattern="2:4")
    with pytest.raises(ValueError, match="sparsity of 2:4 must be left alone"):
        pruner.set_sparsity(0.5)
