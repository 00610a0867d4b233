"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(folder: Path, mine: Callable[[str], bool], who: str) -> Iterator[Path]:
    """Gives an empty folder, which takes the place of `folder` if nothing is raised.

    Whatever happens before that, Ctrl-C included, leaves `folder` as it was and nothing beside it.

    Args:
        folder: May exist; what else lies in it, a tokenizer say, is carried over.
        mine: Whether a name in it belongs to the old contents and goes.
        who: The caller, for messages.

    Raises:
        ValueError: `folder` is a file.
    """
    target = folder.resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{who}: folder must not be a file, got {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    new, old = stem.with_name(stem.name + ".new"), stem.with_name(stem.name + ".old")
    new.mkdir()
    try:
        yield new
        if target.exists():
            _carry_over(target, new, mine)
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _carry_over(source: Path, target: Path, mine: Callable[[str], bool]) -> None:
    for entry in source.iterdir():
        if mine(entry.name) or (target / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, target / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
