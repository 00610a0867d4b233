"""Sparse layers as compressed-tensors wrote them up to 0.14, which nothing loads any more.

Of a Linear P of [N, K], in place of P.weight (older files: of P, in place of P.weight.*):

    sparse-24-bitmask   compressed [N, K/2]   bitmask uint8 [N, ceil(K/8)]   shape [2, 1]
    sparse-bitmask      compressed [nnz]      bitmask, as above   row_offsets [N]   shape [2]

A bitmask is one bit a weight, low bit first; the first kind sets exactly two of every four, zeros
or not. The second is our own bitmask but for row_offsets, where each row starts.
Source: files written by compressed-tensors 0.13, read byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekern import formats
from prunekern.checkpoint.files import TensorInfo
from prunekern.formats import Bitmask, Canonical, Sparse24

_FORMATS = {"sparse-24-bitmask": "2:4", "sparse-bitmask": "bitmask"}
_QUANTISED = ("weight_packed", "weight_scale", "weight_zero_point", "scale_packed", "input_scale")
_CONFIG_KEYS = ("quantization_config", "compression_config")  # the second in older files

_EMPTY_NIBBLE = 0b0100
_INVALID = 255
# For the four bits of a group, low bit first, its two positions as metadata of 2:4 hold them.
_NIBBLE_OF_BITS = torch.full((16,), _INVALID, dtype=torch.uint8)
for _first in range(4):
    for _second in range(_first + 1, 4):
        _NIBBLE_OF_BITS[1 << _first | 1 << _second] = _first | _second << 2


@dataclass(frozen=True)
class LegacyLayer:
    """Where the tensors of one compressed layer are.

    Attributes:
        name: Of the layer.
        prefix: Of its tensors.
        kernel: "2:4" or "bitmask".
    """

    name: str
    prefix: str
    kernel: str

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Of all that the layer has in the file, without bias."""
        offsets = ("row_offsets",) if self.kernel == "bitmask" else ()
        return tuple(f"{self.prefix}.{key}" for key in ("compressed", "bitmask", "shape", *offsets))


def config_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys under which compressed-tensors left its settings."""
    return [
        key
        for key in _CONFIG_KEYS
        if isinstance(config.get(key), dict)
        and config[key].get("quant_method", "compressed-tensors") == "compressed-tensors"
    ]


def find_layers(
    config: Mapping[str, Any], infos: Mapping[str, TensorInfo], who: str
) -> list[LegacyLayer]:
    """The compressed layers, by the tensors in the files.

    Which layers the config targets, by regular expressions even, is not asked: files do not lie
    about what they hold.

    Raises:
        ValueError: Another format, quantised weights, or files without compressed layers.
    """
    kernel = _kernel_of(config, who)
    quantised = [key for key in infos if key.rpartition(".")[2] in _QUANTISED]
    if quantised:
        raise ValueError(f"{who}: weights must not be quantised, got {quantised[0]}")
    suffix = ".compressed"
    layers: dict[str, LegacyLayer] = {}
    for key in infos:
        if not key.endswith(suffix):
            continue
        prefix = key.removesuffix(suffix)
        layer = LegacyLayer(prefix.removesuffix(".weight"), prefix, kernel)
        if layer.name in layers or f"{layer.name}.weight" in infos:
            raise ValueError(f"{who}: {layer.name} must have one weight, got two in the files")
        layers[layer.name] = layer
    if not layers:
        raise ValueError(
            f"{who}: files must hold compressed layers as their config says, got none; if the "
            "weights are dense, remove quantization_config from config.json"
        )
    return list(layers.values())


def _kernel_of(config: Mapping[str, Any], who: str) -> str:
    settings = [config[key] for key in config_keys(config)]
    if not settings:
        raise ValueError(
            f"{who}: config.json must be of compressed-tensors or prunekern, got "
            f"{_quant_method(config)}"
        )
    for setting in settings:
        if setting.get("format") == "marlin-24":
            raise ValueError(
                f"{who}: format must be sparse and not quantised, got marlin-24: its weights are "
                "4-bit integers in the order of one GPU kernel"
            )
        groups, dense = setting.get("config_groups"), (None, "dense", *_FORMATS)
        if groups or setting.get("format") not in dense:
            raise ValueError(
                f"{who}: weights must not be quantised, got format {setting.get('format')!r:.50}"
            )
    sparse = [setting.get("sparsity_config", setting) for setting in settings]
    names = {s.get("format") for s in sparse if isinstance(s, dict)} - {None, "dense"}
    if len(names) != 1 or not names <= set(_FORMATS):
        raise ValueError(
            f"{who}: sparsity format must be one of {', '.join(_FORMATS)}, got "
            f"{sorted(map(str, names))}"
        )
    return _FORMATS[names.pop()]


def _quant_method(config: Mapping[str, Any]) -> str:
    setting = config.get("quantization_config")
    return repr(setting.get("quant_method")) if isinstance(setting, dict) else "no settings"


def layer_shape(layer: LegacyLayer, infos: Mapping[str, TensorInfo], shape: Tensor) -> tuple:
    """((N, K), dtype, nnz) of a layer, checked against the headers before its weight is read.

    Raises:
        ValueError: A tensor is missing, or not of the size or dtype that the format demands.
    """
    sizes = [int(size) for size in shape.flatten()] if shape.dtype == torch.int64 else []
    if len(sizes) != 2 or not all(1 <= size < 2**31 for size in sizes):
        raise ValueError(f"{layer.name}: shape must be two positive int64, got {shape!r:.100}")
    N, K = sizes
    packed = infos[f"{layer.prefix}.compressed"]
    if packed.dtype not in formats.DTYPES:
        raise ValueError(
            f"{layer.name}: compressed must be float32, bfloat16 or float16, got {packed.dtype}"
        )
    if layer.kernel == "2:4":
        if K % 4:
            raise ValueError(f"{layer.name}: in_features must be a multiple of 4, got {K}")
        wanted, nnz = {"compressed": (packed.dtype, (N, K // 2))}, 0
    else:
        nnz = packed.shape[0] if len(packed.shape) == 1 else -1
        if not 0 <= nnz <= N * K:
            raise ValueError(
                f"{layer.name}: compressed must hold at most {N * K} values, "
                f"got shape {list(packed.shape)}"
            )
        wanted = {"row_offsets": (torch.int64, (N,))}
    wanted["bitmask"] = (torch.uint8, (N, -(-K // 8)))
    for key, (dtype, size) in wanted.items():
        info = infos.get(f"{layer.prefix}.{key}")
        got = None if info is None else (info.dtype, info.shape)
        if got != (dtype, size):
            raise ValueError(
                f"{layer.name}: {key} must be {dtype} {list(size)}, got {got or 'nothing'}"
            )
    return (N, K), packed.dtype, nnz


def canonical_of(
    layer: LegacyLayer, tensors: Mapping[str, Tensor], shape: tuple[int, int]
) -> Canonical:
    """The layer in our format, validated.

    Args:
        layer: Whose it is.
        tensors: compressed, bitmask and, for "bitmask", row_offsets, of the sizes that
            `layer_shape` demands.
        shape: (N, K).

    Raises:
        ValueError: A bitmask that does not agree with the values or with row_offsets.
    """
    values, bitmask = tensors["compressed"].contiguous(), tensors["bitmask"].contiguous()
    if layer.kernel == "2:4":
        canonical = Sparse24(values=values, meta=_meta_of(layer, bitmask, shape), shape=shape)
    else:
        canonical = Bitmask(values=values, bitmask=bitmask, shape=shape)
        _check_offsets(layer, bitmask, tensors["row_offsets"])
    formats.validate(canonical, layer.name)
    return canonical


def _meta_of(layer: LegacyLayer, bitmask: Tensor, shape: tuple[int, int]) -> Tensor:
    groups = shape[1] // 4
    bits = torch.stack([bitmask & 0xF, bitmask >> 4], -1).flatten(1)
    nibbles = _NIBBLE_OF_BITS[bits[:, :groups].long()]
    bad = int((nibbles == _INVALID).sum()) + int((bits[:, groups:] != 0).sum())
    if bad:
        raise ValueError(
            f"{layer.name}: bitmask must have two bits set in every group of four and none beyond, "
            f"got {bad} groups that have not"
        )
    nibbles = torch.nn.functional.pad(nibbles, (0, groups % 2), value=_EMPTY_NIBBLE)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous()


def _check_offsets(layer: LegacyLayer, bitmask: Tensor, row_offsets: Tensor) -> None:
    counts = torch.stack([bitmask >> i & 1 for i in range(8)]).sum((0, 2), dtype=torch.int64)
    starts = counts.cumsum(0) - counts
    if not torch.equal(starts, row_offsets):
        n = int((starts != row_offsets).nonzero()[0])
        raise ValueError(
            f"{layer.name}: row_offsets must count the bits set before each row, {int(starts[n])} "
            f"at row {n}, got {int(row_offsets[n])}"
        )
