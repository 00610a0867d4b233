"""Speed against tokens: from which number of tokens on does which storage beat which library?

By default the 54 cells of M = 1 .. 512 at 50, 70 and 90 % zeros in a 7B model's q_proj and
down_proj; in full every power of two up to 8192, every sparsity and dtype.
"""

from shapes import ALL_SPARSITIES, ALL_TOKENS, SHAPES, TOKENS, Cell


def plan(full: bool) -> list[Cell]:
    """The cells."""
    sparsities = ALL_SPARSITIES if full else (0.5, 0.7, 0.9)
    return [
        Cell(shape, sparsity, tokens, weights)
        for shape in SHAPES
        for sparsity in sparsities
        for weights in (("bfloat16", "float16", "float32") if full else ("bfloat16",))
        for tokens in (ALL_TOKENS if full else TOKENS)
    ]


def test_tokens(race, cell):
    race(cell)
