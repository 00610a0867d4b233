"""What a removal did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemovedPart:
    """What happened to one layer.

    Attributes:
        layer: Index before the removal.
        before: What there was, in words: "9 heads, 3 key/value".
        after: What there is.
        parameters_before: Of the decoder layer.
        parameters_after: And after.
        energy_kept: Share of the sum of squares of the weights concerned that is left, before
            anything was refitted.
    """

    layer: int
    before: str
    after: str
    parameters_before: int
    parameters_after: int
    energy_kept: float


@dataclass(frozen=True)
class RemovalReport:
    """What was removed.

    Attributes:
        title: What was asked for.
        parts: The layers concerned.
        parameters_before: Of the whole model.
        parameters_after: And after.
        note: What else changed and a user should know, or "".
    """

    title: str
    parts: tuple[RemovedPart, ...]
    parameters_before: int
    parameters_after: int
    note: str = ""

    def __str__(self) -> str:
        share = 1 - self.parameters_after / self.parameters_before
        lines = [
            f"{self.title}: {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{share:.1%} fewer"
        ]
        width = max(len(part.before) for part in self.parts)
        other = max(len(part.after) for part in self.parts)
        lines += [
            f"  layer {part.layer:>3}  {part.before:<{width}} -> {part.after:<{other}}  "
            f"{part.parameters_before:,} -> {part.parameters_after:,}  "
            f"energy kept {part.energy_kept:6.1%}"
            for part in self.parts
        ]
        return "\n".join([*lines, self.note] if self.note else lines)
