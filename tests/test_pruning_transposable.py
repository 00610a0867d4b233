import itertools

import pytest
import torch
from conftest import tiny_llama

import prunekern
from prunekern.formats import compress
from prunekern.layouts.sparse24 import is_transposable
from prunekern.nn import count_broken_groups
from prunekern.pruning.masks import nm_mask, transposable_mask


def both_ways(weight):
    return count_broken_groups(weight) == count_broken_groups(weight.t()) == 0


def all_masks():
    """Every 4 x 4 mask with two kept in each row and column, by trying all 65536."""
    for choice in itertools.product((0, 1), repeat=16):
        mask = torch.tensor(choice).view(4, 4)
        if (mask.sum(0) == 2).all() and (mask.sum(1) == 2).all():
            yield mask.bool()


def test_each_block_has_the_best_of_all_masks():
    masks = torch.stack(list(all_masks()))
    assert len(masks) == 90
    scores = torch.rand(12, 20)
    chosen = transposable_mask(scores)
    for n, k in itertools.product(range(0, 12, 4), range(0, 20, 4)):
        block = scores[n : n + 4, k : k + 4].double()
        best = (masks * block).sum((1, 2)).max()
        assert torch.isclose((chosen[n : n + 4, k : k + 4] * block).sum(), best)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (4, 5), (7, 13), (64, 96), (33, 130)])
def test_masks_of_any_shape_are_24_both_ways(shape):
    scores = torch.rand(shape) + 0.1
    mask = transposable_mask(scores)
    assert mask.shape == scores.shape and both_ways(scores * mask)
    whole = shape[0] // 4 * 4, shape[1] // 4 * 4
    assert mask[: whole[0], : whole[1]].sum() == whole[0] * whole[1] // 2


def test_many_blocks_are_scored_in_parts(monkeypatch):
    scores = torch.rand(64, 64)
    wanted = transposable_mask(scores)
    monkeypatch.setattr("prunekern.pruning.masks._BLOCKS_AT_ONCE", 7)
    assert torch.equal(transposable_mask(scores), wanted)


def test_it_costs_weight_energy():
    weight = torch.randn(256, 256)
    one_way = nm_mask(weight.abs(), 2, 4)
    kept = [(weight * m).square().sum() for m in (one_way, transposable_mask(weight.abs()))]
    assert 0.9 * kept[0] < kept[1] < kept[0]


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda", "ria", "sparsegpt", "taylor"])
def test_every_method_prunes_both_ways(method):
    model = tiny_llama()
    calibrated = {"calibration": torch.randint(0, 128, (4, 32))}
    prunekern.prune(
        model,
        "2:4",
        method,
        targets="all-linear",
        transposable=True,
        **({} if method in ("magnitude", "random") else calibrated),
    )
    layers = [m for n, m in model.named_modules() if n.endswith("_proj")]
    assert len(layers) == 14 and all(both_ways(m.weight) for m in layers)
    assert all(is_transposable(compress(m.weight, "2:4")) for m in layers)


def test_other_patterns_are_refused():
    model = tiny_llama()
    for pattern in ("1:4", "unstructured"):
        with pytest.raises(ValueError, match='pattern must be "2:4" for transposable, got'):
            prunekern.prune(model, pattern, transposable=True)
