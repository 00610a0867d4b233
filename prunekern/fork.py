"""What keeps a fork after use from waiting for ever."""

from __future__ import annotations

import ctypes
import os

_HARD = 2  # omp_pause_hard of omp.h


def end_openmp_threads() -> bool:
    """Ends this thread's idle OpenMP threads; the next parallel loop makes new ones.

    A child of fork() inherits GNU OpenMP's list of threads and none of the threads: its first
    parallel loop, of ours or of torch, waits for them for ever. Without a list it makes its own.

    Returns:
        Whether it was done; not so inside a parallel loop or where no OpenMP 5 is loaded.
    """
    try:
        return ctypes.CDLL(None).omp_pause_resource_all(_HARD) == 0
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no CDLL(None)
        return False


def register() -> None:
    """Has it done before each os.fork() and fork of multiprocessing."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=end_openmp_threads)
