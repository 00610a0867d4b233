"""What layers see on calibration tokens, one layer at a time, and gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Calibration = Tensor | Iterable[Tensor]


@dataclass
class Moments:
    """Of a Linear's inputs x[K] over all calibration tokens, in float64.

    Attributes:
        mean: [K].
        square: [K], the mean of x_j^2.
        gram: [K, K], the mean of x x^T, or None where it was not asked for.
    """

    mean: Tensor
    square: Tensor
    gram: Tensor | None


def check_batches(model: nn.Module, calibration: Calibration | None, who: str) -> list[Tensor]:
    """Batches of token ids, int64 [batch, length], on the model's device.

    Args:
        model: Whose vocabulary the ids are of.
        calibration: A tensor [windows, length], run window by window, or an iterable of batches.
        who: The caller, for messages.

    Raises:
        ValueError: There is none, or one is no batch of token ids.
    """
    if calibration is None:
        raise ValueError(f"{who}: calibration must be token ids for these arguments, got None")
    if isinstance(calibration, Tensor) and calibration.ndim == 2:
        batches = list(calibration.split(1))
    else:
        batches = list(calibration)
    if not batches:
        raise ValueError(f"{who}: calibration must hold at least one batch, got none")
    rows = model.get_input_embeddings().num_embeddings
    for batch in batches:
        if (
            not isinstance(batch, Tensor)
            or batch.dtype not in (torch.int64, torch.int32)
            or batch.ndim != 2
            or batch.shape[0] == 0
            or batch.shape[1] < 2
        ):
            shape = (
                f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, Tensor) else repr(batch)
            )
            raise ValueError(
                f"{who}: calibration must be int64 [batch, length] with at least two tokens, "
                f"got {shape}"
            )
        low, high = int(batch.min()), int(batch.max())
        if low < 0 or high >= rows:
            raise ValueError(
                f"{who}: calibration must hold token ids from 0 to {rows - 1}, got {low} to {high}"
            )
    device = model.get_input_embeddings().weight.device
    return [batch.to(device, torch.int64) for batch in batches]


class LayerInputs:
    """What reaches the decoder layers: hidden states of one layer, everything else of all.

    Only one layer's hidden states are held, [tokens, hidden] numbers in all.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, batches: list[Tensor]) -> None:
        """Runs the model over the batches once; it should be in eval mode."""
        layers = model.model.layers
        self.hidden: list[Tensor] = []
        self._kwargs: list[list[dict[str, Any]]] = [[] for _ in layers]

        def hook(index: int) -> Callable:
            def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if index == 0:
                    self.hidden.append(args[0])
                self._kwargs[index].append(kwargs)

            return keep

        handles = [
            layer.register_forward_pre_hook(hook(i), with_kwargs=True)
            for i, layer in enumerate(layers)
        ]
        try:
            for batch in batches:
                model.model(input_ids=batch, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def run(self, layer: nn.Module, index: int) -> list[Tensor]:
        """Outputs of a layer in the place of layer `index`, batch by batch."""
        pairs = zip(self.hidden, self._kwargs[index], strict=True)
        return [layer(hidden, **kwargs) for hidden, kwargs in pairs]

    def moments(self, layer: nn.Module, index: int, linear: str, gram: bool) -> Moments:
        """Moments of the inputs of one Linear of the layer.

        Args:
            layer: A decoder layer.
            index: Its place.
            linear: Name within the layer.
            gram: Whether all products are wanted or only squares: [K, K] float64 is 1 GB for 11008
                channels.
        """
        module = layer.get_submodule(linear)
        K, device = module.in_features, module.weight.device
        total = torch.zeros(K, dtype=torch.float64, device=device)
        square = torch.zeros_like(total)
        products = torch.zeros(K, K, dtype=torch.float64, device=device) if gram else None
        tokens = 0

        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal tokens
            x = args[0].detach().flatten(0, -2).double()
            total.add_(x.sum(0))
            square.add_(x.square().sum(0))
            if products is not None:
                products.addmm_(x.t(), x)
            tokens += len(x)

        handle = module.register_forward_pre_hook(add)
        try:
            self.run(layer, index)
        finally:
            handle.remove()
        return Moments(
            total / tokens, square / tokens, None if products is None else products.div_(tokens)
        )


def column_gradients(
    model: nn.Module, weights: list[Tensor], batches: list[Tensor]
) -> Iterable[list[Tensor]]:
    """For each batch sum_n w_nj dL/dw_nj of each weight [N, K]: [K] float32.

    That is the derivative of the loss with respect to a factor on input channel j, so that its
    negative is the first-order change of the loss when the channel goes (Michel et al. 2019, arXiv
    1905.10650; Molchanov et al. 2019, arXiv 1906.10771).
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    wanted = {id(weight) for weight in weights}
    try:
        for parameter in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        for batch in batches:
            with torch.enable_grad():
                loss = model(input_ids=batch, labels=batch, use_cache=False).loss
                gradients = torch.autograd.grad(loss, weights)
            yield [
                (weight.detach().float() * gradient.float()).sum(0)
                for weight, gradient in zip(weights, gradients, strict=True)
            ]
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
