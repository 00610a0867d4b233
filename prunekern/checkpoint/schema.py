"""What config.json says about a pruned model, and what of it is believed.

    "quantization_config": {
        "quant_method": "prunekern", "version": 1,
        "modules": {"model.layers.0.self_attn.q_proj": {"format": "2:4", "shape": [N, K]}, ...}
    },
    "prunekern": {"heads": {"0": [query, key_value], ...}, "channels": {"0": intermediate, ...}}

The first names the sparse layers; the second, of structured pruning, the layers whose sizes are not
those of the config. Both hold names and numbers, nothing that is looked up, imported or matched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunekern import formats

QUANT_METHOD = "prunekern"
VERSION = 1

_MAX_SIZE = 2**31 - 1  # of N and of K, as the ops take them


@dataclass(frozen=True)
class ModuleSpec:
    """A sparse layer.

    Attributes:
        format: One of `prunekern.formats.FORMATS`.
        shape: (N, K) of the dense weight.
    """

    format: str
    shape: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {"format": self.format, "shape": list(self.shape)}


@dataclass(frozen=True)
class Structure:
    """Sizes of single decoder layers.

    Attributes:
        heads: Index of the layer -> (query heads, key/value heads).
        channels: Index of the layer -> width of its MLP.
    """

    heads: dict[int, tuple[int, int]]
    channels: dict[int, int]

    def __bool__(self) -> bool:
        return bool(self.heads or self.channels)


def parse_modules(modules: Any, version: Any) -> dict[str, ModuleSpec]:
    """Name -> spec of every sparse layer, from quantization_config.

    Raises:
        ValueError: Another version, or an entry that is not a format and a shape.
    """
    who = "quantization_config"
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{who}: version must be {VERSION}, got {version!r:.50}; a newer prunekern wrote it?"
        )
    if not isinstance(modules, Mapping):
        raise ValueError(f"{who}: modules must map names to formats, got {modules!r:.100}")
    specs = {}
    for name, entry in modules.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"{who}: a module must have a name, got {name!r:.100}")
        if not isinstance(entry, Mapping) or set(entry) != {"format", "shape"}:
            raise ValueError(f"{who}: {name} must have format and shape, got {entry!r:.100}")
        kernel, shape = entry["format"], entry["shape"]
        if not isinstance(kernel, str) or kernel not in formats.FORMATS:
            raise ValueError(
                f"{who}: format of {name} must be one of {', '.join(formats.FORMATS)}, "
                f"got {kernel!r:.50}"
            )
        specs[name] = ModuleSpec(kernel, _sizes(shape, 2, f"{who}: shape of {name}"))
    return specs


def parse_structure(note: Any) -> Structure:
    """The sizes in config.prunekern; none if there is no such entry.

    Raises:
        ValueError: An unknown key, or an entry that is not a layer's index and its sizes.
    """
    if note is None:
        return Structure({}, {})
    who = "config.prunekern"
    if not isinstance(note, Mapping) or not set(note) <= {"heads", "channels"}:
        raise ValueError(f"{who}: must hold heads and channels, got {note!r:.100}")
    heads = {}
    for layer, sizes in _by_layer(note.get("heads", {}), f"{who}: heads").items():
        query, groups = _sizes(sizes, 2, f"{who}: heads of layer {layer}")
        if query % groups:
            raise ValueError(
                f"{who}: query heads of layer {layer} must be a multiple of its {groups} "
                f"key/value heads, got {query}"
            )
        heads[layer] = (query, groups)
    channels = {
        layer: _sizes([size], 1, f"{who}: channels of layer {layer}")[0]
        for layer, size in _by_layer(note.get("channels", {}), f"{who}: channels").items()
    }
    return Structure(heads, channels)


def _by_layer(entries: Any, who: str) -> dict[int, Any]:
    if not isinstance(entries, Mapping):
        raise ValueError(f"{who} must map layers to sizes, got {entries!r:.100}")
    for key in entries:
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"{who} must be by index of the layer, got {key!r:.50}")
    layers = {int(key): value for key, value in entries.items()}
    if len(layers) < len(entries):
        raise ValueError(f"{who} must name a layer once, got {sorted(entries)}")
    return layers


def _sizes(values: Any, count: int, who: str) -> tuple[int, ...]:
    whole = isinstance(values, list | tuple) and len(values) == count
    if not whole or not all(type(v) is int and 1 <= v <= _MAX_SIZE for v in values):
        raise ValueError(
            f"{who} must be {count} whole numbers from 1 to {_MAX_SIZE}, got {values!r:.100}"
        )
    return tuple(values)
