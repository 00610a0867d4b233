"""Which layers are pruned how: the most gain for a budget of loss. Pure functions of tables.

Each layer has options, each with a cost (loss in nats) and a gain (share of time saved); at most
one of a layer is taken, none means dense. That is the multiple-choice knapsack, solved by dynamic
programming over costs in steps of a fraction of the budget. Costs are rounded up, so that the
budget always holds; what that wastes is at most one step a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

STEPS = 10_000  # of the budget
NEAR = 0.9  # of the budget: good enough to stop searching
ROUNDS = 6  # of measuring a plan

What = TypeVar("What")


@dataclass(frozen=True)
class Option:
    """One thing that may be done to a layer.

    Attributes:
        cost: What it adds to the loss, nats a token.
        gain: What it saves, as a share of the whole model's time.
        what: Whatever the caller wants to know of it.
    """

    cost: float
    gain: float
    what: object = None


Picks = dict[str, Option]


def choose(options: Mapping[str, Sequence[Option]], budget: float) -> Picks:
    """The options with the greatest sum of gains whose costs sum to `budget` at most.

    Args:
        options: Of each layer; those without gain are never taken.
        budget: In the unit of costs.

    Returns:
        Layer -> its option; a layer that stays dense is not there.
    """
    if budget <= 0:
        return {
            name: max(free, key=lambda o: o.gain)
            for name, own in options.items()
            if (free := [o for o in own if o.cost <= 0 < o.gain])
        }
    best = np.zeros(STEPS + 1)  # best[s]: gain of the layers so far for s steps of cost
    taken = np.full((len(options), STEPS + 1), -1, dtype=np.int16)
    for row, own in zip(taken, options.values(), strict=True):
        before = best.copy()
        for index, option in enumerate(own):
            steps = _steps(option.cost, budget)
            if steps > STEPS or option.gain <= 0:
                continue
            total = before[: STEPS + 1 - steps] + option.gain
            better = total > best[steps:]
            best[steps:][better] = total[better]
            row[steps:][better] = index
    picks: Picks = {}
    left = STEPS
    for (name, own), row in reversed(list(zip(options.items(), taken, strict=True))):
        if row[left] >= 0:
            picks[name] = own[row[left]]
            left -= _steps(picks[name].cost, budget)
    return {name: picks[name] for name in options if name in picks}


def search(
    options: Mapping[str, Sequence[Option]],
    budget: float,
    measure: Callable[[Picks], float],
    rounds: int = ROUNDS,
) -> tuple[Picks, float]:
    """The best plan found whose measured loss is within the budget.

    The sum of costs is only a forecast: layers pruned together disturb each other, and those
    pruned later make up for some of it. So a plan is measured, and the budget that costs are held
    against is scaled by what was found, down or up, until the plan comes near the budget.

    Args:
        options: See `choose`.
        budget: Of the measured loss.
        measure: Picks -> loss above dense, measured.
        rounds: Plans that are measured at most.

    Returns:
        The picks with the most gain of those within the budget, and their measured loss; no picks
        and 0 where none was.
    """
    best: Picks = {}
    best_loss = 0.0
    low, high = 0.0, math.inf  # scales known to be within, and beyond
    scale = 1.0
    seen: set[tuple] = set()
    for _ in range(rounds):
        picks = choose(options, scale * budget)
        key = tuple((name, id(option)) for name, option in picks.items())
        if not picks or key in seen:
            break
        seen.add(key)
        loss = measure(picks)
        if loss <= budget:
            low = scale
            if gain_of(picks) > gain_of(best):
                best, best_loss = picks, loss
            if loss >= NEAR * budget:
                break
        else:
            high = scale
        # Aims between NEAR and 1; where loss is not positive there is no telling how far to go.
        aim = scale * (1 + NEAR) / 2 * budget / loss if loss > 0 else 4 * scale
        inside = low < aim < high
        scale = aim if inside else (low + high) / 2 if high < math.inf else 2 * scale
    return best, best_loss


def gain_of(picks: Picks) -> float:
    """The sum of gains."""
    return sum(option.gain for option in picks.values())


def cost_of(picks: Picks) -> float:
    """The sum of costs."""
    return sum(option.cost for option in picks.values())


def _steps(cost: float, budget: float) -> int:
    return max(0, math.ceil(cost / budget * STEPS - 1e-9))
