"""Which dtype? fp32 against fp32, bf16 against bf16, ..., int4 against int4."""

from shapes import SHAPES, Cell

WEIGHTS = ("float32", "bfloat16", "float16", "int8", "int4")


def plan(full: bool) -> list[Cell]:
    """The cells."""
    return [
        Cell(shape, sparsity, tokens, weights)
        for shape in (SHAPES if full else SHAPES[:1])
        for sparsity in ((0.5, 0.9) if full else (0.5,))
        for weights in WEIGHTS
        for tokens in ((1, 4, 16, 64, 128, 512, 2048) if full else (1, 16, 128))
    ]


def test_dtypes(race, cell):
    race(cell, rivals=(cell.weights,))
