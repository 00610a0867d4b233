"""convert: folders of others into ours, ours and others' into dense ones; a layer at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from prunekern import formats
from prunekern.checkpoint import legacy
from prunekern.checkpoint.card import CARD, write_card
from prunekern.checkpoint.files import CONFIG, INDEX, TensorInfo, is_inside, read_folder, read_json
from prunekern.checkpoint.folder import replaced
from prunekern.checkpoint.report import SavedCheckpoint, SavedLayer
from prunekern.checkpoint.schema import (
    QUANT_METHOD,
    VERSION,
    ModuleSpec,
    parse_modules,
    parse_structure,
)
from prunekern.checkpoint.skeleton import check_tensors
from prunekern.checkpoint.writer import Part, parse_size, write_shards
from prunekern.formats import Canonical

_WHO = "convert"
_TARGETS = ("prunekern", "dense")
# What is copied along: tokenizer, settings, texts. Nothing that could be run.
_SUFFIXES = {".json", ".jinja", ".md", ".model", ".tiktoken", ".txt"}
_NAMES = {"LICENSE", "NOTICE"}


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "prunekern",
    max_shard_size: int | str = "5GB",
) -> SavedCheckpoint:
    """Rewrites a folder of compressed weights that transformers does not load, or not without us.

    Reads `sparse-24-bitmask` and `sparse-bitmask` of compressed-tensors, and, to make them dense,
    folders of `save_pretrained`. All is checked: config and headers before anything is written,
    tensors when their turn comes, one layer in memory at a time; an error leaves no folder.

    Args:
        source: The folder.
        target: Must not exist, or be empty.
        to: "prunekern" for `AutoModelForCausalLM.from_pretrained` after `import prunekern`, or
            "dense", with zeros, which loads everywhere.
        max_shard_size: Bytes or like "5GB": above it weights are split into several files.

    Returns:
        What was written, layer by layer.

    Raises:
        ValueError: What is wrong with the arguments or with which file.
    """
    source, target = Path(source), Path(target)
    if to not in _TARGETS:
        raise ValueError(f"{_WHO}: to must be one of {', '.join(_TARGETS)}, got {to!r}")
    max_shard_bytes = parse_size(max_shard_size, _WHO)
    if not source.is_dir():
        raise ValueError(f"{_WHO}: source must be a folder, got {source}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{_WHO}: target must be a new or empty folder, got {target}")
    config = read_json(source / CONFIG)
    infos = read_folder(source)
    layers = _layers(config, infos, to)
    taken = {name for layer in layers for name in layer.taken}
    dense = to == "dense"
    rows: list[SavedLayer] = []
    parts = [layer.part(dense, rows) for layer in layers]
    parts += [_copy(name, info) for name, info in infos.items() if name not in taken]
    for key in (*legacy.config_keys(config), "quantization_config"):
        config.pop(key, None)
    if not dense:
        config["quantization_config"] = {
            "quant_method": QUANT_METHOD,
            "version": VERSION,
            "modules": {layer.name: layer.spec.to_json() for layer in layers},
        }
    with replaced(target, lambda name: False, _WHO) as new:
        total = write_shards(new, parts, max_shard_bytes)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _copy_texts(source, new)
        saved = SavedCheckpoint(target, tuple(rows), total)
        if not (new / CARD).exists():
            write_card(new, saved, SimpleNamespace(**config), None)
    return saved


@dataclass(frozen=True)
class _Layer:
    """One compressed layer of the source.

    Attributes:
        name: Of the layer.
        spec: Format and shape in which it is written.
        dtype: Of the kept weights or their scales.
        specs: Dtypes and shapes of its canonical tensors.
        taken: Names of the tensors in the source that it replaces.
        read: Its weight.
    """

    name: str
    spec: ModuleSpec
    dtype: torch.dtype
    specs: formats.Specs
    taken: frozenset[str]
    read: Callable[[], Canonical]

    def part(self, dense: bool, rows: list[SavedLayer]) -> Part:
        """What is written of it; adds a row when that is done."""
        specs = {"weight": (self.dtype, list(self.spec.shape))} if dense else self.specs

        def make() -> dict[str, Tensor]:
            canonical = self.read()
            rows.append(SavedLayer.of(self.name, canonical))
            made = {"weight": formats.decompress(canonical)} if dense else canonical.tensors()
            return {f"{self.name}.{key}": t for key, t in made.items()}

        return Part({f"{self.name}.{key}": spec for key, spec in specs.items()}, make)


def _layers(config: Mapping[str, Any], infos: Mapping[str, TensorInfo], to: str) -> list[_Layer]:
    setting = config.get("quantization_config")
    if not (isinstance(setting, dict) and setting.get("quant_method") == QUANT_METHOD):
        return [_legacy_layer(layer, infos) for layer in legacy.find_layers(config, infos, _WHO)]
    if to != "dense":
        raise ValueError(f'{_WHO}: a folder of prunekern must be converted to "dense", got {to!r}')
    if parse_structure(config.get("prunekern")):
        raise ValueError(
            f"{_WHO}: model must have layers of one size to be written dense for others, got "
            "different heads or channels by config.prunekern; only prunekern rebuilds those"
        )
    modules = parse_modules(setting.get("modules"), setting.get("version"))
    return [_own_layer(name, spec, infos) for name, spec in modules.items()]


def _legacy_layer(layer: legacy.LegacyLayer, infos: Mapping[str, TensorInfo]) -> _Layer:
    shape_info = infos.get(f"{layer.prefix}.shape")
    if shape_info is None or shape_info.nbytes > 64:
        raise ValueError(f"{layer.name}: shape must be two numbers, got {shape_info}")
    shape, dtype, nnz = legacy.layer_shape(layer, infos, _read(f"{layer.prefix}.shape", infos))
    keys = {name.rpartition(".")[2]: name for name in layer.tensor_names}

    def read() -> Canonical:
        tensors = {key: _read(name, infos) for key, name in keys.items()}
        return legacy.canonical_of(layer, tensors, shape)

    spec = ModuleSpec(layer.kernel, shape)
    specs = formats.tensor_specs(layer.kernel, shape, dtype, nnz)
    return _Layer(layer.name, spec, dtype, specs, frozenset(keys.values()), read)


def _own_layer(name: str, spec: ModuleSpec, infos: Mapping[str, TensorInfo]) -> _Layer:
    specs = check_tensors(name, spec, infos, f"{name}.bias" in infos)
    keys = {key: f"{name}.{key}" for key in formats.tensor_names(spec.format)}

    def read() -> Canonical:
        tensors = {key: _read(full, infos) for key, full in keys.items()}
        canonical = formats.from_tensors(spec.format, tensors, spec.shape)
        formats.validate(canonical, name)
        return canonical

    dtype = next(dtype for dtype, _ in specs.values() if dtype.is_floating_point)
    return _Layer(name, spec, dtype, specs, frozenset(keys.values()), read)


def _copy(name: str, info: TensorInfo) -> Part:
    return Part({name: (info.dtype, list(info.shape))}, lambda: {name: _read(name, {name: info})})


def _read(name: str, infos: Mapping[str, TensorInfo]) -> Tensor:
    with safe_open(infos[name].path, "pt") as file:
        return file.get_tensor(name)


def _copy_texts(source: Path, target: Path) -> None:
    for path in source.iterdir():
        wanted = path.suffix in _SUFFIXES or path.stem in _NAMES
        if wanted and path.is_file() and is_inside(path, source):
            if path.name not in (CONFIG, INDEX):
                shutil.copyfile(path, target / path.name)
