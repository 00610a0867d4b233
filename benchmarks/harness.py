"""The rules of a race: contenders take turns, each on a cold weight; ratios are of one round.

    round   for each contender: the filler; where its threads are another pool's, a pause until
            those of the last one sleep; one call that is not timed, to wake its own; the timed call
    call    on the next copy of the weight, so that two rounds lie between two uses of one

So whatever else the machine does falls on all alike. A time is the median over rounds, a ratio the
median over rounds of rival / ours. Calls that take long get no call to wake threads. Who is far
behind after the first calls leaves the race: its time is that of one call.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from clock import Filler, cold_bytes, cpu_seconds, gpu_seconds
from contenders import Contender
from limits import limits, name

PAUSE = 1.5e-3  # seconds: threads of GOMP_SPINCOUNT 10000 spin for a third of it
LONG = 8e-3  # seconds from which on waking threads costs nothing that counts
FAR_BEHIND = 20  # times as slow as the fastest
LEAST_ROUNDS, MOST_ROUNDS = 5, 60


@dataclass(frozen=True)
class Result:
    """What a race says of one contender.

    Attributes:
        name, is_ours: See `Entrant`.
        ms, low_ms, high_ms: Median, and what a tenth of the rounds were below and above.
        weight_bytes: Of the packed weight.
        flops: Two for each weight and token that it has to multiply.
        gb_per_s: Bytes of weight, x and y over the median.
        rounds: That the median is of.
        share_of_limit: Limit of the machine / median; of ours only, as what rivals really read and
            multiply is their own matter.
    """

    name: str
    is_ours: bool
    ms: float
    low_ms: float
    high_ms: float
    weight_bytes: int
    flops: int
    gb_per_s: float
    rounds: int
    share_of_limit: float | None


class Race:
    """Contenders that take turns on one device."""

    def __init__(self, contenders: list[Contender], device: str = "cpu"):
        self.contenders, self.device = contenders, device
        self.clock = cpu_seconds if device == "cpu" else gpu_seconds
        rotation = sum(c.weight_bytes * len(c.copies) for c in contenders)
        turns = sum(len(c.copies) for c in contenders)
        lacking = max(cold_bytes() - rotation, 0) if device == "cpu" else 0
        self.filler = Filler(-(-lacking // turns))
        self.times: dict[str, list[float]] = {c.entrant.name: [] for c in contenders}
        self.last_pool = None
        for _ in range(2):  # the first calls compile and pack; the second are the first estimate
            self.round()
        last = {name: times[-1] for name, times in self.times.items()}
        slow = max(FAR_BEHIND * min(last.values()), LONG)
        self.behind = [c for c in contenders if last[c.entrant.name] > slow]
        self.contenders = [c for c in contenders if c not in self.behind]

    def round(self) -> None:
        """All of them once."""
        for c in self.contenders:
            self.ready(c)
            self.timed(c)

    def ready(self, c: Contender) -> None:
        """Everything before the timed call."""
        self.filler()
        if self.device == "cpu" and c.entrant.pool != self.last_pool:
            time.sleep(PAUSE)
        self.last_pool = c.entrant.pool
        if not self.times[c.entrant.name] or self.times[c.entrant.name][-1] < LONG:
            c.next().call(c.x)

    def timed(self, c: Contender) -> None:
        """One call, its time noted."""
        product = c.next()
        if product.seconds:
            seconds = product.seconds(c.x)
        else:
            seconds = self.clock(lambda: product.call(c.x))
        self.times[c.entrant.name].append(seconds)

    def run(self, benchmark, seconds: float) -> list[Result]:
        """Rounds for about so many seconds; pytest-benchmark's own numbers are the best of ours.

        Args:
            benchmark: The fixture of pytest-benchmark.
            seconds: For all rounds; at least `LEAST_ROUNDS` are run.
        """
        took = cpu_seconds(self.round)
        rounds = int(min(max(seconds / took, LEAST_ROUNDS), MOST_ROUNDS))
        mine = [c for c in self.contenders if c.entrant.is_ours] or self.contenders
        best = min(mine, key=lambda c: self.times[c.entrant.name][-1])
        others = [c for c in self.contenders if c is not best]
        for c in self.contenders:
            self.times[c.entrant.name].clear()

        def others_first() -> None:
            for c in others:
                self.ready(c)
                self.timed(c)
            self.ready(best)

        benchmark.pedantic(self.timed, args=(best,), setup=others_first, rounds=rounds)
        return [self.result(c) for c in self.contenders + self.behind]

    def result(self, c: Contender) -> Result:
        """What the rounds say of one."""
        times = sorted(self.times[c.entrant.name])
        times = times[:1] if c in self.behind else times  # without the call that packed
        median, tenth = statistics.median(times), len(times) // 10
        flops = 2 * len(c.x) * c.entrant.kept
        limit = limits(self.device).seconds(c.nbytes, flops, name(c.x.dtype))
        return Result(
            name=c.entrant.name,
            is_ours=c.entrant.is_ours,
            ms=median * 1e3,
            low_ms=times[tenth] * 1e3,
            high_ms=times[-1 - tenth] * 1e3,
            weight_bytes=c.weight_bytes,
            flops=flops,
            gb_per_s=c.nbytes / median / 1e9,
            rounds=len(times),
            share_of_limit=limit / median if c.entrant.is_ours else None,
        )

    def ratio(self, rival: str, own: str) -> float:
        """Median over rounds of the rival's time / our time."""
        if len(self.times[rival]) != len(self.times[own]):  # the rival left
            return statistics.median(self.times[rival]) / statistics.median(self.times[own])
        pairs = zip(self.times[rival], self.times[own], strict=True)
        return statistics.median(r / o for r, o in pairs)
