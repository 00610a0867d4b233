"""Is it so in the layers of real models, small and wide ones?"""

from shapes import MODELS, Cell


def plan(full: bool) -> list[Cell]:
    """The cells: each shape of a model once."""
    models = MODELS if full else ("SmolLM2-135M", "Llama-3-8B")
    return [
        Cell(shape, sparsity, tokens, label=f"{model} {layers}")
        for model in models
        for layers, shape in MODELS[model].items()
        for sparsity in ((0.5, 0.7, 0.9) if full else (0.5,))
        for tokens in ((1, 4, 16, 128, 512, 2048) if full else (1, 16, 128))
    ]


def test_shapes(race, cell):
    race(cell)
