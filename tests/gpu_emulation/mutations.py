"""Deliberate bugs in the samples, and which check finds each: the emulator's own test.

A mutation replaces text of a sample, its headers included (mutations.txt). Every seed of ``SEEDS``
is run; what they find is a set of the keys of ``CHECKS`` and of the three below them. Where the
order of the warps decides which of two checks comes first, the table names both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import samples
from .compiler import cuda_to_ptx
from .emulator import EmulationError, Module
from .samples import SAMPLES, WrongResult

SEEDS = range(4)
LIMIT = 2_000_000  # instructions of a block, far more than any sample runs

# What the emulator says when it stops a kernel. The first that matches names the finding.
CHECKS = {
    "race": r"^race on",
    "fence": r"no fence\.proxy\.async|no wgmma\.fence",
    "arrivals": r"^more arrivals",
    "metadata": r"^invalid 2:4 metadata|^sparsity selector",
    "poison": r"uninitialised",
    "misaligned": r"^misaligned",
    "out of bounds": r"out of bounds",
    "in flight": r"^the block ends while|^the warp ends with",
    "deadlock": r"^deadlock",
    "endless": r"an endless loop",
    "member mask": r"member mask|which does not take part",
    "divergence": r"only some lanes|needs all 32 lanes",
    "barrier count": r"different thread counts|must be a multiple of 32",
}
# What is seen where the kernel runs to its end.
WRONG_RESULT, CONFLICTS, UNSTABLE = "wrong result", "conflicts", "unstable bits"
NOT_SEEN = "not seen"


@dataclass(frozen=True)
class Mutation:
    """One bug: what is broken in which sample, how, and the check that has to find it.

    Attributes:
        found_by: a finding, "a or b", or NOT_SEEN.
        edits: (text, replacement); each text stands exactly once in the sample.
        quick: runs in the default suite.
    """

    id: str
    sample: str
    found_by: str
    broken: str
    edits: tuple[tuple[str, str], ...]
    quick: bool = False


def read(text: str) -> list[Mutation]:
    """Mutations of a text whose head says how it is written: mutations.txt."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [_paragraph(p.splitlines()) for p in re.split(r"\n{2,}", "\n".join(lines).strip("\n"))]


def _paragraph(lines: list[str]) -> Mutation:
    head, quick, edits = lines[0].split(" | "), False, []
    previous = ""
    for line in lines[1:]:
        if line == "quick":
            quick = True
        elif line[0] == "-" and previous == "-":
            edits[-1][0].append(line[1:])
        elif line[0] == "-":
            edits.append(([line[1:]], []))
        elif line[0] == "+" and edits:
            edits[-1][1].append(line[1:])
        else:
            raise ValueError(f"mutations.txt, {head[0]}: {line!r}")
        previous = line[0]
    replaced = tuple(("\n".join(old), "\n".join(new)) for old, new in edits)
    return Mutation(*head, replaced, quick)


MUTATIONS = read((Path(__file__).parent / "mutations.txt").read_text())


def mutant(mutation: Mutation) -> str:
    """The sample's source with the bug in it; ValueError where a text is not there exactly once."""
    text = samples.source(mutation.sample)
    for old, new in mutation.edits:
        if text.count(old) != 1:
            raise ValueError(f"{mutation.id}: {old!r} stands {text.count(old)} times in the sample")
        text = text.replace(old, new)
    return text


def findings(source: str, sample: str) -> set[str]:
    """What the seeds find in CUDA C++ of the sample or of a mutant: nothing, if it is right."""
    module = Module(cuda_to_ptx(source, SAMPLES[sample].arch))
    found, outputs = set(), set()
    for seed in SEEDS:
        try:
            launch = partial(module.launch, seed=seed, limit=LIMIT)
            run = SAMPLES[sample].run(launch, **SAMPLES[sample].shapes[0])
        except EmulationError as fault:
            found.add(_check_of(str(fault)))
        except WrongResult:
            found.add(WRONG_RESULT)
        else:
            outputs.add(run.output)
            if any(run.counters.conflicts.values()):
                found.add(CONFLICTS)
    return found | ({UNSTABLE} if len(outputs) > 1 else set())


def _check_of(message: str) -> str:
    for check, pattern in CHECKS.items():
        if re.search(pattern, message, re.MULTILINE):
            return check
    raise LookupError(f"no check says this: {message}")


def table() -> str:
    """All mutations as Markdown."""
    rows = ["| id | what was broken | found by |", "|---|---|---|"]
    rows += [f"| `{m.id}` | {m.broken} | {m.found_by} |" for m in MUTATIONS]
    return "\n".join(rows)
