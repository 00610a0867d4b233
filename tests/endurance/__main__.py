"""Runs the load for some minutes; prints memory, threads and files as it goes."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

from endurance.load import Load
from prunekern import _C
from prunekern.fork import end_openmp_threads
from prunekern.nn import release_memory

_ALLOWED = 0.01  # growth of resident memory after warming up


def sample(load: Load, minutes: float) -> dict[str, float]:
    """What the process holds when nothing runs."""
    gc.collect()
    release_memory()
    end_openmp_threads()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    row = {
        "minutes": round(minutes, 2),
        "resident_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "operations": load.counts.total(),
    }
    print("  ".join(f"{row[key]:>11}" for key in row), flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="endurance")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the samples go")
    args = parser.parse_args()
    load = Load(args.seed)
    print(f"sanitized: {_C.build_info()['sanitized']}, {len(load.layers)} shared layers")
    print(
        "  ".join(f"{k:>11}" for k in ("minutes", "resident_mb", "threads", "files", "operations"))
    )
    every = 60 * min(1, args.minutes / 10)
    start = time.monotonic()
    rows, due = [], every
    while (now := time.monotonic() - start) < 60 * args.minutes:
        load.step()
        if now >= due:
            rows.append(sample(load, now / 60))
            due = now + every
    rows.append(sample(load, now / 60))
    first = rows[len(rows) // 3]  # what came before was warming up
    growth = rows[-1]["resident_mb"] / first["resident_mb"] - 1
    steady = all(rows[-1][key] == first[key] for key in ("threads", "files"))
    flat = growth <= _ALLOWED
    print(f"resident memory {growth:+.2%} since minute {first['minutes']}, threads and files "
          f"{'constant' if steady else 'NOT constant'}; {dict(load.counts)}; "
          f"results {load.digest()}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"samples": rows, "counts": load.counts}, indent=1) + "\n")
    return 0 if flat and steady else 1


if __name__ == "__main__":
    sys.exit(main())
