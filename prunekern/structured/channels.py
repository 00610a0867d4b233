"""remove_channels: channels of the MLP, rows of gate and up with columns of down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunekern.structured.apply import remove_units
from prunekern.structured.calibration import Calibration
from prunekern.structured.counts import check_indices, check_layers, check_one_of, kept_count
from prunekern.structured.model import channel_count, check_model
from prunekern.structured.report import RemovalReport
from prunekern.structured.units import Request

# Tiles of dense and sparse kernels alike divide it, or it them.
MULTIPLE = 32


def remove_channels(
    model: nn.Module,
    fraction: float | None = None,
    n: int | None = None,
    channels: Mapping[int, Iterable[int]] | None = None,
    by: str = "magnitude",
    calibration: Calibration | None = None,
    compensate: str = "none",
    multiple: int = MULTIPLE,
) -> RemovalReport:
    """Removes channels of every layer's MLP, in place; all or nothing.

    Args:
        model: LlamaForCausalLM, or Mistral's, Qwen2's or Qwen3's.
        fraction: This share goes, rounded so that a multiple of `multiple` stays; or
        n: so many go, exactly; or
        channels: layer -> channels that go, in the layers named, exactly.
        by: What is least goes. "magnitude": sum of squares of a channel's weights; "activation": of
            its share in the output of down_proj on calibration tokens; "gradient": |change of the
            loss|, to first order.
        calibration: Token ids, int64 [windows, length] or an iterable of [batch, length]; for
            "activation", "gradient" and compensation.
        compensate: "none"; "least_squares" refits down_proj to the channels that stay; "bias" adds
            the mean of what is lost to down_proj's bias, where it has one.
        multiple: See `fraction`.

    Returns:
        Parameters and share of energy kept, layer by layer.

    Raises:
        ValueError: Another model, sparse layers, a number that does not fit, or missing
            calibration; the model is then as it was.
    """
    who = "remove_channels"
    check_one_of(who, fraction=fraction, n=n, channels=channels)
    if not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"{who}: multiple must be at least 1, got {multiple}")
    layers = check_model(model, who)
    requests = {}
    if channels is not None:
        check_layers(channels, len(layers), f"{who}: channels")
        for i, gone in sorted(channels.items()):
            total = channel_count(layers[i])
            stays = torch.ones(total, dtype=torch.bool)
            stays[check_indices(gone, total, f"{who}: channels of layer {i}")] = False
            requests[i] = _request(layers[i], stays.nonzero().flatten())
    else:
        step = multiple if n is None else 1
        for i, layer in enumerate(layers):
            what = f"{who}: channels of layer {i}"
            requests[i] = _request(layer, kept_count(channel_count(layer), n, fraction, step, what))
    return remove_units(model, requests, by, calibration, compensate, who, _words)


def _request(layer: nn.Module, keep: int | Tensor) -> Request:
    device = layer.mlp.down_proj.weight.device
    units = torch.arange(channel_count(layer), device=device)[:, None]
    keep = keep.to(device) if isinstance(keep, Tensor) else keep
    return Request({"mlp.gate_proj": units, "mlp.up_proj": units}, "mlp.down_proj", units, keep)


def _words(layer: nn.Module) -> str:
    return f"{channel_count(layer)} channels"
