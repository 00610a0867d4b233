"""Which storage from which sparsity? Every variant of ours beside the best rivals."""

from shapes import ALL_SPARSITIES, SHAPES, Cell


def plan(full: bool) -> list[Cell]:
    """The cells: one token, some and many."""
    return [
        Cell(shape, sparsity, tokens, weights)
        for shape in (SHAPES if full else SHAPES[:1])
        for sparsity in (ALL_SPARSITIES if full else (0.3, 0.5, 0.7, 0.8, 0.9, 0.95))
        for weights in (("bfloat16", "float16", "float32") if full else ("bfloat16",))
        for tokens in ((1, 4, 16, 128, 512) if full else (1, 128))
    ]


def test_sparsity(race, cell):
    race(cell, every=True)
