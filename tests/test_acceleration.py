"""The table of what pays on this machine: made of real layers, its words true to its numbers."""

import torch

from prunekern.acceleration import SPARSITIES, TOKENS, Row, acceleration
from prunekern.formats import FORMATS
from prunekern.ops import default_layout


def test_every_format_is_timed_in_the_layout_that_it_gets_here():
    found = acceleration(torch.float32, size=64)
    assert [row.kernel for row in found.rows] == list(FORMATS)
    for row in found.rows:
        stem = FORMATS[row.kernel].stem
        assert row.layout == default_layout(stem, torch.device(found.device), torch.float32)
        assert tuple(row.factors) == (
            (0.5,) if FORMATS[row.kernel].pattern == "2:4" else SPARSITIES
        )
        for factors in row.factors.values():
            assert set(factors) == set(TOKENS)
            assert all(f > 0 for f in factors.values())


def test_pays_from_is_the_least_sparsity_that_is_faster():
    row = Row(
        "", "csr", "", {0.5: {1: 0.9, 512: 0.1}, 0.7: {1: 1.2, 512: 0.5}, 0.9: {1: 2, 512: 0.9}}
    )
    assert row.pays_from(1) == 0.7
    assert row.pays_from(512) is None


def test_the_table_says_all_of_it():
    text = str(acceleration(torch.bfloat16, size=64))
    assert "measured" in text and "64 x 64, bfloat16" in text
    for kernel in FORMATS:
        assert f"{kernel} " in text
    assert "heads" in text
