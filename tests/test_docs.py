"""The documentation: what it says of bytes, names and steps is what the code does."""

import ast
import importlib
import re
import types

import pytest
import torch
from docs_blocks import PAGES, ROOT, blocks, python_blocks

import prunekern
from prunekern import formats

by_id = pytest.mark.parametrize("block", python_blocks(), ids=lambda b: b.id)


def _dotted(node):
    """The name that an expression like a.b.c spells, or None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := _dotted(node.value)):
        return f"{start}.{node.attr}"
    return None


def _resolve(name):
    """The object that a dotted name means; modules are imported on the way."""
    found, path = importlib.import_module("prunekern"), "prunekern"
    for part in name.split(".")[1:]:
        path += f".{part}"
        if not hasattr(found, part) and isinstance(found, types.ModuleType):
            importlib.import_module(path)
        found = getattr(found, part)
    return found


@by_id
def test_python_parses_and_its_names_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        name = _dotted(node) if isinstance(node, ast.Attribute) else None
        if name and name.startswith("prunekern."):
            _resolve(name)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "prunekern":
            for alias in node.names:
                _resolve(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_in_the_text_exist(page):
    """`prunekern.x.y` in running text; what is written in capitals or ends in a file is not one."""
    for name in re.findall(r"`(prunekern(?:\.[A-Za-z_]\w*)+)[`(]", page.read_text()):
        _resolve(name)


def test_pages_are_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {str(p.relative_to(ROOT / "docs")) for p in PAGES if p.parent != ROOT}
    assert pages == set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heads_of_files_are_there(page):
    for pattern in re.findall(r"\{\{ head (\S+) \}\}", page.read_text()):
        files = list(ROOT.glob(pattern))
        assert files, pattern
        assert all(file.read_text().startswith(("//", '"""')) for file in files), pattern


def test_reference_has_every_public_name():
    text = (ROOT / "docs/reference.md").read_text()
    listed = set(re.findall(r"^ +- (\w+)$", text, re.MULTILINE))
    assert listed | {"compare"} == set(prunekern.__all__)


# ------------------------------------------------------------------------------ formats


FORMATS_PAGE = {
    block.title: block for block in blocks(ROOT / "docs/formats.md") if block.language == "text"
}


def _example():
    rows = FORMATS_PAGE["weight"].text.strip().splitlines()
    return torch.tensor([[float(n) for n in row.split()] for row in rows], dtype=torch.bfloat16)


@pytest.mark.parametrize("kernel", formats.FORMATS)
def test_bytes_of_the_formats_page(kernel):
    """Each format of the code is on the page, and its bytes are those that compress writes."""
    wanted, name = {}, ""
    for line in FORMATS_PAGE[kernel].text.splitlines():
        name, *pairs = line.split() if not line.startswith(" ") else (name, *line.split())
        wanted[name] = wanted.get(name, "") + "".join(pairs)
    canonical = prunekern.compress(_example(), kernel)
    found = {
        name: bytes(t.view(torch.uint8).flatten().tolist()).hex()
        for name, t in canonical.tensors().items()
    }
    assert found == wanted
    assert torch.equal(prunekern.decompress(canonical), _example())


def test_dtypes_and_shapes_of_the_formats_page():
    """The tables of tensors: names and integer dtypes, format by format."""
    sections = re.split(r"^## ", (ROOT / "docs/formats.md").read_text(), flags=re.MULTILINE)
    tables = {s.splitlines()[0]: re.findall(r"^\| `(\w+)` \| (\w+)", s, re.M) for s in sections}
    for kernel in formats.FORMATS:
        specs = formats.tensor_specs(kernel, (2, 10), torch.bfloat16, nnz=8, group_size=64)
        rows = dict(tables[kernel])
        for name, (dtype, _) in specs.items():
            if name in rows:  # int4 only says how it differs from int8
                is_float = dtype.is_floating_point
                assert rows[name] == ("float" if is_float else str(dtype).removeprefix("torch."))
        assert rows or kernel == "2:4-int4"


# ------------------------------------------------------------------------------ blocks that run


def _run(found, namespace):
    """Runs Python blocks in order; returns (what a block should print, what it did) pairs."""
    printed, pairs = "", []
    for block in found:
        if block.language == "python":
            lines = []
            namespace["print"] = lambda *args, lines=lines: lines.append(" ".join(map(str, args)))
            exec(compile(block.text, block.id, "exec"), namespace)
            printed = "\n".join(lines)
        elif block.title == "prints":
            pairs.append((block, printed))
    return pairs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder; comparing, which has tests of its own, is only called."""
    from prunekern import compare

    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(compare, "compare", lambda *args, **options: calls.append(options))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield calls
    torch.set_num_threads(threads)


def _less(monkeypatch, name, **options):
    """prunekern.<name> with these options where a call leaves them out: the same in less time."""
    whole = getattr(prunekern, name)
    monkeypatch.setattr(prunekern, name, lambda *args, **given: whole(*args, **options | given))


SMALL = ("formats.md", "kernels/index.md", "guide/training.md", "guide/checkpoints.md")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what pruning by magnitude costs
@pytest.mark.parametrize("page", SMALL)
def test_small_pages_run(page, folder, here):
    _run(blocks(ROOT / "docs" / page), {"folder": folder})


def test_readme_runs(folder, here, tmp_path, monkeypatch):
    """On a tiny model: that the calls are right, not what comes out."""
    (tmp_path / "text.txt").write_text("A short text, of which there is much. " * 200)
    _less(monkeypatch, "prune", windows=4, window=64)
    _less(monkeypatch, "recover", steps=2, window=64)
    _run(blocks(ROOT / "README.md"), {"folder": folder})


def test_tutorial_runs_on_a_tiny_model(folder, here, monkeypatch):
    from prunekern.compare import default_model

    monkeypatch.setattr(default_model, "default_model_path", lambda: folder)
    pairs = _run(blocks(ROOT / "docs/tutorial.md"), {})
    assert len(pairs) >= 6 and len(here) == 1
    for block, printed in pairs:
        assert re.sub(r"[\d.]+", "#", printed) == re.sub(r"[\d.]+", "#", block.text.strip())


@pytest.mark.slow
def test_tutorial_prints_what_it_says(here):
    """On the default model; the numbers to 3 %, as other CPUs sum in another order."""
    pytest.importorskip("gguf")
    pairs = _run(blocks(ROOT / "docs/tutorial.md"), {})
    for block, printed in pairs:
        wanted, found = (re.findall(r"\d+\.?\d*", text) for text in (block.text, printed))
        assert [float(n) for n in found] == pytest.approx([float(n) for n in wanted], rel=0.03)
