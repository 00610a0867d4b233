"""What mkdocs includes at build time, so that nothing is written twice.

`{{ head csrc/cpu/sparse24_simd.h }}` is the comment, or the docstring, that the file opens with;
with a `*` that of each file that says more than where to look.
`{{ results }}` lists benchmarks/results/*.md, each of which becomes a page, `results/<name>.md`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def head(path: str) -> str:
    """The comment or docstring at the head of a source file.

    Raises:
        ValueError: There is none.
    """
    text = (ROOT / path).read_text()
    if path.endswith(".py"):
        found = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = []
        for line in text.splitlines():
            if not line.startswith("//"):
                break
            lines.append(line[3:])
        found = "\n".join(lines)
    if not found:
        raise ValueError(f"docs: {path} must open with a comment, got none")
    return found


def on_files(files, config):
    """Adds each file of benchmarks/results as a page."""
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text()
        # What is not a page of these is named, not linked.
        text = re.sub(r"\[([^\]]+)\]\((?!http)(?!#)(?![\w-]+\.md\))[^)]*\)", r"\1", text)
        files.append(
            File.generated(
                config,
                f"results/{path.name}",
                content=text,
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
        )
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in heads of files and the list of results."""

    def quote(path: str) -> str:
        return f"From the head of `{path}`:\n\n```text\n{head(path)}\n```"

    def source(match: re.Match) -> str:
        if "*" not in match[1]:
            return quote(match[1])
        paths = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(match[1]))]
        return "\n\n".join(quote(path) for path in paths if head(path).count("\n") > 1)

    def results(_: re.Match) -> str:
        return "\n".join(
            f"* [{path.read_text().splitlines()[0].lstrip('# ')}](results/{path.name})"
            for path in sorted(RESULTS.glob("*.md"))
        )

    markdown = re.sub(r"\{\{ head (\S+) \}\}", source, markdown)
    return re.sub(r"\{\{ results \}\}", results, markdown)
