"""Clipping by the norm of all gradients where some parameters are cut and some are not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """G = g min(1, max_norm / norm) for all gradients g together, norm their 2-norm.

    As torch.nn.utils.clip_grad_norm_, which refuses DTensors of several meshes, or beside plain
    tensors, as there are after tensor parallelism. All processes must call it.

    Args:
        parameters: Of the model; those without a gradient are left out.
        max_norm: Largest norm that stays.

    Returns:
        The norm before, a plain tensor, the same on each process.
    """
    groups: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        if p.grad is not None:
            mesh = p.grad.device_mesh if isinstance(p.grad, DTensor) else None
            groups.setdefault(mesh, []).append(p)
    norms = []
    for group in groups.values():
        norm = nn.utils.get_total_norm([p.grad for p in group])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
    for group in groups.values():
        nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total
