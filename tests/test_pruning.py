import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekern
from prunekern.pruning.masks import (
    global_threshold,
    kept_count,
    largest_mask,
    nm_mask,
    parse_pattern,
    row_mask,
    threshold_mask,
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 9),
    K=st.integers(1, 70),
    n=st.integers(1, 8),
    more=st.integers(0, 8),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 99),
)
def test_nm_keeps_the_n_largest_of_each_group(rows, K, n, more, levels, seed):
    m = n + more
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (rows, K), generator=generator).float()
    mask = nm_mask(scores, n, m)
    assert torch.equal(mask, nm_mask(scores.clone(), n, m))
    for start in range(0, K, m):
        group, kept = scores[:, start : start + m], mask[:, start : start + m]
        assert (kept.sum(1) == min(n, group.shape[1])).all()
        smallest_kept = group.masked_fill(~kept, torch.inf).amin(1)
        largest_gone = group.masked_fill(kept, -torch.inf).amax(1)
        assert (smallest_kept >= largest_gone).all()


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    sparsity=st.floats(0, 0.999),
    levels=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 99),
)
def test_unstructured_counts_are_exact_whatever_the_ties(shape, sparsity, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, shape, generator=generator).float()
    keep = kept_count(scores.numel(), sparsity)
    mask = largest_mask(scores, keep)
    assert int(mask.sum()) == keep
    if 0 < keep < scores.numel():
        assert scores[mask].min() >= scores[~mask].max()
        last = scores[mask].min()
        ties = (scores == last).flatten()
        chosen = mask.flatten()[ties]
        assert torch.equal(chosen, chosen.sort(descending=True).values)  # lower index first
    rows = row_mask(scores, sparsity)
    assert (rows.sum(1) == kept_count(shape[1], sparsity)).all()


def test_global_threshold_over_layers_is_exact_with_ties():
    layers = [torch.tensor([[1.0, 2, 2]]), torch.tensor([[2.0, 2], [0, 3]])]
    threshold, ties = global_threshold(layers, 4 / 7)  # keeps 3 of 7: the 3 and two of four 2s
    assert (threshold, ties) == (2.0, 2)
    first, ties = threshold_mask(layers[0], threshold, ties)
    second, ties = threshold_mask(layers[1], threshold, ties)
    assert first.tolist() == [[False, True, True]]
    assert second.tolist() == [[False, False], [False, True]]
    assert ties == 0


def model():
    return nn.ModuleDict(
        {"q_proj": nn.Linear(16, 8), "v_proj": nn.Linear(16, 4), "out": nn.Linear(4, 4)}
    )


def test_two_four_by_magnitude():
    m = model()
    before = copy.deepcopy(m)
    report = prunekern.prune(m, "2:4")
    for name in ("q_proj", "v_proj"):
        weight, old = m[name].weight, before[name].weight
        assert ((weight.view(-1, 4) != 0).sum(1) == 2).all()
        kept = weight != 0
        assert torch.equal(weight[kept], old[kept])
        assert not torch.signbit(weight[~kept]).any()  # +0.0, never -0.0
    assert torch.equal(m["out"].weight, before["out"].weight)
    assert [layer.name for layer in report.layers] == ["q_proj", "v_proj"]
    assert report.sparsity == 0.5 and "q_proj" in str(report)
    energy = m["q_proj"].weight.square().sum() / before["q_proj"].weight.square().sum()
    assert report.layers[0].energy_kept == pytest.approx(energy.item(), rel=1e-5)


@pytest.mark.parametrize("scope", ["layer", "row", "global"])
def test_scopes_of_unstructured(scope):
    m = model()
    with torch.no_grad():
        m["q_proj"].weight.mul_(10)
    prunekern.prune(m, "unstructured", sparsity=0.25, targets=("q_proj", "v_proj"), scope=scope)
    zeros = {name: (m[name].weight == 0).sum(1) for name in ("q_proj", "v_proj")}
    total = sum(int(z.sum()) for z in zeros.values())
    assert total == 48  # a quarter of 192, in every scope
    if scope == "row":
        assert all((z == 4).all() for z in zeros.values())
    if scope == "layer":
        assert int(zeros["v_proj"].sum()) == 16
    if scope == "global":
        assert int(zeros["v_proj"].sum()) > 40  # small weights go first, wherever they are


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "3:2"}, 'pattern must be "unstructured" or "N:M"'),
        ({"pattern": "0:4"}, "pattern must"),
        ({"pattern": "2:64"}, "pattern must"),
        ({"pattern": 24}, "pattern must"),
        ({"method": "wand"}, "method must be one of magnitude"),
        ({"pattern": "unstructured", "scope": "column"}, "scope must be one of layer, row, global"),
        ({"pattern": "unstructured", "sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1"),
        ({"pattern": "unstructured", "sparsity": -0.1}, "sparsity must be in"),
        ({"pattern": "unstructured", "sparsity": float("nan")}, "sparsity must be in"),
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity of 2:4 must be 0.5 or left out, got 0.6"),
        (
            {"targets": "k_proj"},
            "must match a Linear layer, got 'k_proj'; there are out, q_proj, v_proj",
        ),
        ({"targets": ()}, "one or more names"),
        ({"targets": "re:("}, "valid regular expressions"),
    ],
)
def test_bad_arguments_leave_the_model_alone(arguments, message):
    m = model()
    before = copy.deepcopy(m.state_dict())
    with pytest.raises(ValueError, match=f"prune: .*{message}"):
        prunekern.prune(m, **arguments)
    assert all(torch.equal(t, before[k]) for k, t in m.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_before_anything_changes(value):
    m = model()
    with torch.no_grad():
        m["v_proj"].weight[1, 1] = value
    before = copy.deepcopy(m["q_proj"].weight)
    with pytest.raises(ValueError, match="v_proj must have finite weights, got 1 NaN or infinite"):
        prunekern.prune(m, "2:4")
    assert torch.equal(m["q_proj"].weight, before)


def test_patterns_parse():
    assert parse_pattern("1:3") == (1, 3)
    assert parse_pattern("unstructured") is None


def test_shared_weight_is_pruned_once():
    m = model()
    m["v_proj"].weight = m["q_proj"].weight
    assert len(prunekern.prune(m, "unstructured", sparsity=0.5).layers) == 1
    assert (m["q_proj"].weight == 0).sum() == 64
