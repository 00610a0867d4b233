"""Runs compiled GPU kernels on the CPU: see README.md beside this file."""

from .counters import Counters, Traffic
from .emulator import EmulationError, Module
from .ptx import PtxError

__all__ = ["Counters", "EmulationError", "Module", "PtxError", "Traffic"]
