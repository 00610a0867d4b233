"""How many go: arguments of the removals turned into numbers, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def kept_count(total: int, n: int | None, fraction: float | None, step: int, what: str) -> int:
    """How many of `total` stay, a multiple of `step`.

    Args:
        total: There are now.
        n: So many go, or
        fraction: this share goes, rounded so that what stays is the nearest multiple.
        step: What stays comes in multiples of it.
        what: Caller and subject, for messages: "remove_heads: query heads of layer 0".

    Raises:
        ValueError: Nothing or everything would go, or n breaks the multiple.
    """
    if n is not None:
        if not isinstance(n, int) or not 0 < n < total:
            raise ValueError(f"{what} must lose from 1 to {total - 1} of {total}, got n={n}")
        if (total - n) % step:
            raise ValueError(
                f"{what} must stay in multiples of {step}, got {total - n} left of {total}"
            )
        return total - n
    if not 0 < fraction < 1:
        raise ValueError(f"{what} must lose a fraction in (0, 1), got {fraction}")
    kept = round(total * (1 - fraction) / step) * step
    if not 0 < kept < total:
        raise ValueError(
            f"{what} must lose some and keep some in steps of {step}, got fraction={fraction}, "
            f"which keeps {kept} of {total}"
        )
    return kept


def check_one_of(who: str, **arguments: object) -> None:
    """Raises ValueError unless exactly one of the arguments is not None."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"{who}: arguments must name exactly one of {', '.join(arguments)}, got "
            f"{', '.join(given) or 'none'}"
        )


def check_choice(who: str, name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{who}: {name} must be one of {', '.join(choices)}, got {value!r}")


def check_indices(indices: Iterable[int], total: int, what: str) -> list[int]:
    """Sorted indices of what goes: some of range(total), not all, none twice.

    Raises:
        ValueError: They are not.
    """
    chosen = sorted(indices)
    if (
        not chosen
        or len(set(chosen)) != len(chosen)
        or not all(isinstance(i, int) for i in chosen)
        or chosen[0] < 0
        or chosen[-1] >= total
        or len(chosen) == total
    ):
        raise ValueError(
            f"{what} must be different indices from 0 to {total - 1} and not all of them, "
            f"got {chosen}"
        )
    return chosen


def check_layers(given: Mapping[int, Iterable[int]], count: int, what: str) -> None:
    """Raises ValueError unless the keys are indices of layers."""
    if not given or not all(isinstance(i, int) and 0 <= i < count for i in given):
        raise ValueError(
            f"{what} must be given by layer, 0 to {count - 1}, got layers {sorted(given)}"
        )
