"""One token, cold: which share of the memory's bandwidth is reached? Beside a plain read loop.

`plain read` takes its turns with the others and reads as many bytes as the smallest of our weights
has, so that a share is of what memory gave in the same moment. Rivals may keep 8 and 4 bits.
"""

from bench_dtypes import WEIGHTS
from shapes import MODELS, SHAPES, Cell


def plan(full: bool) -> list[Cell]:
    """The cells."""
    shapes = (*SHAPES, MODELS["Llama-3-8B"]["gate_proj, up_proj"]) if full else SHAPES
    return [
        Cell(shape, sparsity, tokens, weights)
        for shape in shapes
        for sparsity in ((0.5, 0.7, 0.9) if full else (0.5, 0.9))
        for weights in (WEIGHTS if full else ("bfloat16", "int8", "int4"))
        for tokens in ((1, 4) if full else (1,))
    ]


def test_decode(race, cell):
    race(cell, rivals=(cell.weights,), plain_read=True)
