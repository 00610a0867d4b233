"""Random: what any other score must beat."""

import zlib

import torch
from torch import Tensor


def random_scores(weight: Tensor, name: str, seed: int) -> Tensor:
    """Uniform in [0, 1), and -1 where the weight is zero already: those go first.

    Drawn on the CPU from the seed and the layer's name, so that neither the device nor which other
    layers are pruned changes the result.

    Args:
        weight: [N, K].
        name: Of the layer in its model.
        seed: Any integer.

    Returns:
        [N, K] float32.
    """
    # torch's generator on the CPU looks at 32 bits of its seed.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    scores = torch.rand(weight.shape, generator=generator).to(weight.device)
    return scores.masked_fill_(weight.detach() == 0, -1.0)
