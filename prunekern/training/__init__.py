"""Training through sparse layers: the kept weights are the parameters, the kernels multiply.

    prunekern.prune(model, "2:4", targets="all-linear", transposable=True)
    prunekern.replace_linears(model, "2:4", targets="all-linear", trainable=True)
    ...                                      # any optimizer, DDP, FSDP2, torch.compile
    prunekern.training.freeze(model)         # packed once, for inference

`prunekern.distributed` cuts such layers for tensor parallelism.
"""

from __future__ import annotations

from torch import nn

from prunekern.nn import SparseLinear
from prunekern.replace import swap_modules
from prunekern.training.layer import TrainableSparseLinear
from prunekern.training.product import trainable_linear

__all__ = ["TrainableSparseLinear", "freeze", "make_trainable", "trainable_linear"]


def make_trainable(model: nn.Module) -> list[str]:
    """Makes the weights of every SparseLinear of a model parameters, in place: a checkpoint that is
    loaded compressed trains on without ever being dense.

    Make optimizers afterwards.

    Returns:
        Names of the layers.

    Raises:
        ValueError: The model has no SparseLinear whose weight is fixed.
    """

    def trainable(sparse: SparseLinear) -> TrainableSparseLinear:
        return TrainableSparseLinear(sparse.canonical(), sparse.bias).train(sparse.training)

    fixed = [n for n, m in _named_sparse(model) if not isinstance(m, TrainableSparseLinear)]
    return _swapped(model, fixed, trainable, "make_trainable: model must have fixed SparseLinear")


def freeze(model: nn.Module) -> list[str]:
    """Packs every TrainableSparseLinear of a model once and for all, in place: for inference, where
    packing at each call would cost more than the product.

    Returns:
        Names of the layers.

    Raises:
        ValueError: The model has no trainable sparse layer.
    """
    names = [n for n, m in _named_sparse(model) if isinstance(m, TrainableSparseLinear)]
    frozen = TrainableSparseLinear.freeze
    return _swapped(model, names, frozen, "freeze: model must have trainable SparseLinear")


def _named_sparse(model: nn.Module):
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLinear):
            yield name, module


def _swapped(model: nn.Module, names: list[str], make, message: str) -> list[str]:
    if not names:
        raise ValueError(f"{message} layers, got none; see replace_linears")
    swap_modules(model, names, make)
    return names
