"""The state folder of a calibrated run: what is done survives whatever stops it.

    run.json                    digest of arguments, calibration and the model outside its layers
    layer-00007.safetensors     the pruned weights of decoder layer 7, and a digest of the dense one

Each file is written under a temporary name and renamed: it is whole or it is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def digest(tensors: Iterable[tuple[str, Tensor]], **facts: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bits of tensors, and over facts that JSON can hold."""
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        total.update(data.view(torch.uint8).numpy() if data.numel() else b"")
    return total.hexdigest()


def layer_digest(layer: nn.Module) -> str:
    """Of all parameters and buffers of a decoder layer."""
    return digest(layer.state_dict().items())


class State:
    """What is done of one run."""

    def __init__(self, folder: str | Path, run: str) -> None:
        """Opens the folder, or begins one.

        Args:
            folder: Made if there is none.
            run: Digest of all that decides the result, but for the decoder layers.

        Raises:
            ValueError: The folder holds another run.
        """
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "run.json"
        if path.exists():
            try:
                found = json.loads(path.read_text())["run"]
            except (ValueError, KeyError, TypeError):
                found = "damaged"
            if found != run:
                raise ValueError(
                    "prune: state must be a folder of this very run (model, arguments, "
                    f"calibration), got {folder} of another; name an empty one"
                )
        else:
            _replace(path, lambda temporary: temporary.write_text(json.dumps({"run": run})))

    def load(self, index: int, layer: nn.Module, like: Mapping[str, Tensor]) -> dict | None:
        """The pruned weights of a decoder layer, or None if it isn't done.

        Args:
            index: Of the layer.
            layer: Dense, as the run found it.
            like: Name -> weight, for shape and dtype.

        Raises:
            ValueError: The file is damaged, or of another layer than this.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                dense = (file.metadata() or {}).get("dense")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"prune: state must hold whole files, got {path}: {error}; delete it"
            ) from None
        fits = {k: (t.shape, t.dtype) for k, t in tensors.items()} == {
            k: (t.shape, t.dtype) for k, t in like.items()
        }
        if not fits or dense != layer_digest(layer):
            raise ValueError(
                f"prune: state must be of this very model, got {path} of another; "
                "load the dense model anew or name an empty folder"
            )
        return tensors

    def save(self, index: int, layer: nn.Module, pruned: Mapping[str, Tensor]) -> None:
        """Keeps the pruned weights of a decoder layer, which is still dense."""
        metadata = {"dense": layer_digest(layer)}
        tensors = {name: t.detach().cpu().contiguous() for name, t in pruned.items()}
        _replace(self._path(index), lambda path: save_file(tensors, path, metadata))

    def _path(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.safetensors"


def _replace(path: Path, write: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
