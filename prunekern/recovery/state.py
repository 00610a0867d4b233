"""The checkpoint of a training: one file, whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

FILE = "recovery.pt"


def save_state(folder: str | Path, settings: dict[str, Any], state: dict[str, Any]) -> Path:
    """Writes beside its place and renames: a reader sees the old file or the new one.

    Args:
        folder: Made where it is missing.
        settings: JSON-able; what `load_state` must be given to get the state back.
        state: Tensors and plain values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{FILE}.{os.getpid()}"
    try:
        with scratch.open("wb") as file:
            torch.save(state | {"settings": json.dumps(settings)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, folder / FILE)
    finally:
        scratch.unlink(missing_ok=True)
    return folder / FILE


def load_state(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state in a folder, or None where there is none. Nothing in the file is executed.

    Raises:
        ValueError: Not a checkpoint, or one of a training with other settings: says which.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = json.loads(state["settings"])
    except Exception as error:
        raise ValueError(
            f"recover: checkpoint must be one that recover wrote, got {path}: "
            f"{type(error).__name__}; remove it to start anew"
        ) from error
    ours = json.loads(json.dumps(settings))
    other = [key for key in ours.keys() | saved.keys() if ours.get(key) != saved.get(key)]
    if other:
        key = sorted(other)[0]
        raise ValueError(
            f"recover: checkpoint must be of this training, got {path} with {key} "
            f"{saved.get(key)!r} instead of {ours.get(key)!r}; name another folder, or remove it"
        )
    return state
