"""Scores and SparseGPT against brute force in float64, on single matrices."""

import warnings

import numpy
import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import prunekern
from prunekern.pruning.allocation import outlier_share, owl_sparsities
from prunekern.pruning.magnitude import magnitude_scores
from prunekern.pruning.masks import (
    choose_mask,
    kept_count,
    layer_mask,
    nm_mask,
    quantile,
    quantile_mask,
)
from prunekern.pruning.random_scores import random_scores
from prunekern.pruning.ria import ria_scores
from prunekern.pruning.sparsegpt import inverse_factor, sparsegpt_prune
from prunekern.pruning.wanda import wanda_scores

PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 3), (2, 3), (2, 6), (3, 32), (5, 7)]


def inputs(tokens, K, correlated=True):
    x = torch.randn(tokens, K, dtype=torch.float64)
    if correlated:
        x = x @ (torch.eye(K, dtype=torch.float64) + 0.3 * torch.randn(K, K, dtype=torch.float64))
    return x * torch.logspace(-1, 1, K, dtype=torch.float64)  # channels of very different size


def keep_per_row(scores, keep_of, m=None):
    """Brute force: loops and sorts, in float64."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for i, row in enumerate(scores.tolist()):
        for start in range(0, len(row), m or len(row)):
            group = range(start, min(start + (m or len(row)), len(row)))
            best = sorted(group, key=lambda j, row=row: -row[j])[: keep_of(len(group))]
            mask[i, best] = True
    return mask


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_wanda_masks_are_those_of_float64(n, m):
    x, weight = inputs(200, 45), torch.randn(9, 45)  # 45: several m leave a shorter group
    norm = torch.stack([column.norm() for column in x.T])
    expected = keep_per_row(weight.double().abs() * norm, lambda size: min(n, size), m)
    assert torch.equal(nm_mask(wanda_scores(weight, norm.float()), n, m), expected)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
def test_wanda_ranks_within_a_row(sparsity):
    x, weight = inputs(200, 45), torch.randn(9, 45) * torch.logspace(-2, 2, 9)[:, None]
    norm = torch.stack([column.norm() for column in x.T])
    exact = weight.double().abs() * norm
    expected = keep_per_row(exact, lambda size: kept_count(size, sparsity))
    scores = wanda_scores(weight, norm.float())
    assert torch.equal(choose_mask(scores, None, sparsity, "row"), expected)
    # The two known wrong versions choose otherwise.
    assert not torch.equal(choose_mask(scores, None, sparsity, "layer"), expected)
    no_root = wanda_scores(weight, norm.float().square())
    assert not torch.equal(choose_mask(no_root, None, sparsity, "row"), expected)


def test_ria_is_its_formula():
    weight, norm = torch.randn(5, 7), torch.rand(7)
    weight[:, 3], weight[2] = 0, 0  # sums of zero
    scores = ria_scores(weight, norm)
    for i in range(5):
        for j in range(7):
            size = weight[i, j].abs().item()
            share = 0.0
            if size:
                share = size / weight[:, j].abs().sum() + size / weight[i].abs().sum()
            assert scores[i, j].item() == pytest.approx(float(share * norm[j] ** 0.5), rel=1e-5)


def test_random_is_seeded_by_layer_and_counts_what_is_gone():
    weight = torch.randn(40, 40)
    weight[:, :10] = 0
    first = random_scores(weight, "a", 0)
    assert torch.equal(first, random_scores(weight, "a", 0))
    assert not torch.equal(first, random_scores(weight, "b", 0))
    assert not torch.equal(first, random_scores(weight, "a", 1))
    assert not layer_mask(first, 0.25)[:, :10].any() and layer_mask(first, 0.25)[:, 10:].all()


def test_n_of_m_means_kept():
    # Elsewhere N:M is N pruned: at 1:4 that would leave three.
    layer = nn.Linear(64, 8)
    prunekern.prune(nn.ModuleDict({"q_proj": layer}), "1:4", targets="q_proj")
    assert ((layer.weight.view(-1, 4) != 0).sum(1) == 1).all()


def test_magnitude_is_that_of_torch_prune():
    weight = torch.randn(33, 47)
    for sparsity in (0.2, 0.5, 0.9):
        module = nn.Linear(47, 33)
        module.weight.data = weight.clone()
        torch.nn.utils.prune.l1_unstructured(module, "weight", sparsity)
        assert torch.equal(module.weight_mask.bool(), layer_mask(weight.abs(), sparsity))


def test_two_four_is_that_of_torch_ao():
    pruning = pytest.importorskip("torch.ao.pruning")
    model = nn.Sequential(nn.Linear(64, 24))
    expected = nm_mask(magnitude_scores(model[0].weight), 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsifier = pruning.WeightNormSparsifier(
            sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
        )
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
    assert torch.equal(model[0].parametrizations.weight[0].mask.bool(), expected)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_quantile_is_that_of_torch(q, size):
    values = torch.randn(size)
    expected = torch.quantile(values.double(), q)
    torch.testing.assert_close(quantile(values, q).double(), expected, rtol=1e-6, atol=1e-7)


def test_quantile_takes_more_than_torch_does():
    weight = torch.rand(2**12 + 1, 2**12)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(weight.flatten(), 0.7)
    expected = numpy.quantile(weight.numpy(), 0.7)
    assert quantile(weight, 0.7).item() == pytest.approx(float(expected), rel=1e-6)
    assert quantile_mask(weight, 0.7).double().mean().item() == pytest.approx(0.3, abs=1e-6)


def test_quantile_keeps_ties():
    scores = torch.tensor([[1.0, 1, 1, 1, 2, 3]])
    assert quantile_mask(scores, 0.5).all()
    assert quantile_mask(scores, 0.7).tolist() == [[False] * 4 + [True] * 2]
    assert quantile_mask(scores, 0.0).all()


# ---------------------------------------------------------------------------------- SparseGPT


def obs(weight, hessian, choose, block, frozen=None):
    """Optimal brain surgery, column after column, each with an inverse of its own; float64.

    Args:
        weight: [N, K].
        hessian: [K, K], damped.
        choose: costs [N, columns] -> bool, what stays.
        block: Columns that are chosen together, before their own errors arrive.
        frozen: Bool, what goes whatever it costs.
    """
    w, K = weight.double().clone(), weight.shape[1]
    gone = torch.zeros_like(w, dtype=torch.bool) if frozen is None else frozen.clone()
    for j in range(K):
        if j % block == 0:
            columns = range(j, min(j + block, K))
            costs = torch.stack(
                [w[:, c] ** 2 / torch.linalg.inv(hessian[c:, c:])[0, 0] for c in columns], 1
            )
            gone[:, j : j + block] |= ~choose(costs.masked_fill(gone[:, j : j + block], -1))
        inverse = torch.linalg.inv(hessian[j:, j:])
        for row in range(len(w)):
            if gone[row, j]:
                w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
                w[row, j] = 0
    return w


def factored(x, damping=0.01):
    hessian = 2 * x.T @ x / len(x)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    return damped, *inverse_factor(hessian.float(), damping, "layer")


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("freeze", [False, True])
def test_sparsegpt_is_optimal_brain_surgery(n, m, freeze):
    x, weight = inputs(300, 45), torch.randn(6, 45)
    frozen = torch.rand(6, 45) < 0.2 if freeze else None
    damped, factor, dead = factored(x)
    expected = obs(weight, damped, lambda costs: nm_mask(costs, n, m), m, frozen)
    got = sparsegpt_prune(weight, factor, dead, (n, m), 0.0, frozen)
    assert torch.equal(got != 0, expected != 0)
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-3)
    assert not torch.signbit(got[got == 0]).any()
    if freeze:
        assert not got[frozen].any()


@pytest.mark.parametrize("nm", [None, (2, 4), (1, 3)])
def test_sparsegpt_blocks_of_columns(nm):
    x, weight = inputs(600, 150), torch.randn(4, 150)  # more than one block of 128
    damped, factor, dead = factored(x)
    if nm is None:
        expected = obs(weight, damped, lambda costs: layer_mask(costs, 0.6), 128)
    else:
        expected = obs(weight, damped, lambda costs: nm_mask(costs, *nm), nm[1])
    got = sparsegpt_prune(weight, factor, dead, nm, 0.6)
    assert torch.equal(got != 0, expected != 0)
    torch.testing.assert_close(got.double(), expected, rtol=5e-3, atol=5e-3)


def test_sparsegpt_beats_wanda_where_inputs_are_correlated():
    x = torch.randn(300, 16).double() @ torch.randn(16, 64).double()
    x, weight = x + 0.3 * torch.randn(300, 64), torch.randn(32, 64)
    _, factor, dead = factored(x)
    ours = sparsegpt_prune(weight, factor, dead, (2, 4), 0.0)
    wanda = weight * nm_mask(wanda_scores(weight, x.norm(dim=0).float()), 2, 4)

    def error(w):
        return (x @ (w - weight).double().T).square().sum().item()

    assert error(ours) < 0.7 * error(wanda)


def test_dead_inputs_go_and_are_no_error():
    x = inputs(300, 32)
    x[:, [3, 17]] = 0
    _, factor, dead = factored(x)
    assert dead.nonzero().flatten().tolist() == [3, 17]
    got = sparsegpt_prune(torch.randn(5, 32), factor, dead, None, 0.25)
    assert not got[:, [3, 17]].any() and torch.isfinite(got).all()
    assert int((got == 0).sum()) == 40


def test_damping_grows_in_steps_and_says_so():
    x = torch.randn(2, 24, dtype=torch.float64).repeat(1, 1)
    hessian = (x.T @ x).float()
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(24)  # indefinite, but for damping
    with pytest.warns(UserWarning, match=r"model\.q needed a damping of 0\.1 instead of 0\.01"):
        factor, _ = inverse_factor(hessian.clone(), 0.01, "model.q")
    assert torch.isfinite(factor).all()
    with pytest.raises(ValueError, match=r"prune: model\.q must have a Hessian .* 10 of its mean"):
        inverse_factor(hessian - 1e3 * hessian.diagonal().mean() * torch.eye(24), 0.01, "model.q")
    hessian[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"model\.q must have finite calibration inputs"):
        inverse_factor(hessian, 0.01, "model.q")


# ---------------------------------------------------------------------------------------- OWL


def test_outlier_share_is_of_the_whole_layer():
    small, large = torch.ones(10, 10), torch.full((1, 4), 100.0)
    assert outlier_share([small, large]) == 4 / 104  # mean 4.8: five times it is 24
    assert outlier_share([small]) == 0


def test_owl_keeps_the_mean_and_the_order():
    shares = {0: 0.05, 1: 0.01, 3: 0.02}
    sizes = {0: 100, 1: 100, 3: 300}
    for sparsity in (0.05, 0.5, 0.7, 0.97):
        got = owl_sparsities(shares, sizes, sparsity)
        mean = sum(got[k] * sizes[k] for k in sizes) / 500
        assert mean == pytest.approx(sparsity)
        assert got[0] < got[3] < got[1] and all(0 <= s < 1 for s in got.values())
    got = owl_sparsities(shares, sizes, 0.5).values()
    assert max(got) - min(got) == pytest.approx(0.16)
    assert owl_sparsities({0: 0.1, 1: 0.1}, {0: 1, 1: 1}, 0.5) == {0: 0.5, 1: 0.5}
