"""English text that is on the machine already: to train on, and held out to judge by.

`python_documentation` is the text that `prunekern.compare` measures perplexity on, with its last
windows held out. `docstrings`, `licences` and `man_pages` are other kinds; `split` parts each by
document. No paragraph that is held out is ever trained on, in whatever document it stands.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekern.compare.text import WINDOW, WINDOWS, token_windows

_SHORT = 40  # characters: "Example:" and the like may stand everywhere
_LICENCE = re.compile(r"(licen[cs]es?|copying|notice)([.-].*)?", re.IGNORECASE)
_FONTS = ("B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "SH", "SS", "IP", "TP", "Nm")


@dataclass(frozen=True)
class Split:
    """Documents in two parts without a common paragraph.

    Attributes:
        train: Texts to train and calibrate on.
        held_out: Texts to judge by.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def python_documentation(
    tokenizer: Any, windows: int = WINDOWS, size: int = WINDOW
) -> tuple[tuple[str, ...], Tensor]:
    """The topics of Python's help(), sorted by name; what `compare` measures on is held out.

    Args:
        tokenizer: Of the model; it decides where the held-out windows begin.
        windows: Held out, the last ones of all topics laid end to end.
        size: Tokens of each.

    Returns:
        Texts to train on, without every topic that reaches into the held-out windows and without
        the paragraphs of these that others repeat ("compound" has "while" and "with" word for
        word); and the held-out windows, int64 [windows, size].
    """
    from pydoc_data.topics import topics

    texts = [topics[key] for key in sorted(topics)]
    whole = "\n\n".join(texts)
    held = token_windows(tokenizer, whole, windows, size)
    # Fewer windows than asked for means that all is held out.
    ids = tokenizer(whole, return_offsets_mapping=True, verbose=False)
    begin = ids["offset_mapping"][len(ids["input_ids"]) - held.numel()][0]
    ends = _ends(texts)
    train = [text for text, end in zip(texts, ends, strict=True) if end <= begin]
    tail = [text for text, end in zip(texts, ends, strict=True) if end > begin]
    return without_paragraphs_of(train, tail), held


def split(documents: Mapping[str, str], held_out: float = 0.2) -> Split:
    """Parts documents by a hash of their names, the same whatever other documents there are.

    Args:
        documents: Name -> text. Copies of one text count once.
        held_out: Share of the documents, in (0, 1).
    """
    if not 0 < held_out < 1:
        raise ValueError(f"split: held_out must be a share in (0, 1), got {held_out}")
    seen: set[str] = set()
    train, held = [], []
    for name in sorted(documents):
        text = documents[name]
        digest = _digest(text)
        if digest in seen:
            continue
        seen.add(digest)
        place = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
        (held if place < held_out else train).append(text)
    return Split(without_paragraphs_of(train, held), tuple(held))


def without_paragraphs_of(texts: Iterable[str], held_out: Iterable[str]) -> tuple[str, ...]:
    """Texts less each paragraph of 40 characters or more that a held-out text has as well.

    Paragraphs are what empty lines part; how they are wrapped and indented does not matter.
    """
    known = {_digest(p) for text in held_out for p in _paragraphs(text)}
    left = (
        "\n\n".join(
            p for p in _paragraphs(text) if len(p.strip()) < _SHORT or _digest(p) not in known
        )
        for text in texts
    )
    return tuple(text for text in left if text.strip())


def docstrings(package: str) -> dict[str, str]:
    """Source file -> its documentation strings, of an installed package, which is not imported.

    Raises:
        ValueError: No such package, or one without source files.
    """
    spec = importlib.util.find_spec(package.partition(".")[0])
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"docstrings: package must be an installed one, got {package!r}")
    root = Path(next(iter(spec.submodule_search_locations)))
    documents = {}
    for path in sorted(root.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and files for other Pythons
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        strings = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)]
        text = "\n\n".join(s for s in strings if s)
        if text:
            documents[str(path.relative_to(root.parent))] = text
    return documents


def licences() -> dict[str, str]:
    """Package and file -> text of each licence that an installed package ships."""
    documents = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if ".dist-info" not in str(file) or not _LICENCE.fullmatch(file.name):
                continue
            text = _read(Path(distribution.locate_file(file)))
            if text:
                documents[f"{distribution.name}/{file.name}"] = text
    return documents


def man_pages(section: str = "1", folder: str | Path = "/usr/share/man") -> dict[str, str]:
    """Name -> text of English manual pages, without what only a typesetter reads.

    Args:
        section: "1" for commands, "7" for overviews, ...
        folder: Of the manual.

    Returns:
        Nothing where there is no manual, as in slim containers.
    """
    documents = {}
    for path in sorted(Path(folder).glob(f"man{section}/*")):
        text = _read(path)
        if text and not text.startswith(".so "):
            documents[path.name.removesuffix(".gz")] = _plain(text)
    return documents


def _read(path: Path) -> str:
    """The text of a file, perhaps compressed; nothing where it is not UTF-8 or gone."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return ""


def _plain(roff: str) -> str:
    """Words of a manual page: requests go, arguments of font and heading macros stay."""
    lines = []
    for line in roff.splitlines():
        if line.startswith((".", "'")):
            macro, _, rest = line[1:].strip().partition(" ")
            if macro in ("PP", "P", "LP", "SH", "SS", "TP", "IP", "br", "sp"):
                lines.append("")
            if macro not in _FONTS:
                continue
            line = rest.replace('"', "")
        line = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\s[-+]?\d|\\[&|^/,%cpe]", "", line)
        line = re.sub(r"\\\*?\(..|\\\*?\[[^]]*\]|\\\*.", "", line)
        lines.append(line.replace("\\-", "-").replace("\\ ", " ").replace("\\", ""))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _paragraphs(text: str) -> list[str]:
    return [p for p in re.split(r"\n[ \t]*\n", text) if p.strip()]


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _ends(texts: list[str]) -> list[int]:
    """Where each ends, laid end to end with an empty line between."""
    ends, position = [], 0
    for text in texts:
        ends.append(position + len(text))
        position = ends[-1] + 2
    return ends
