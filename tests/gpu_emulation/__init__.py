"""Runs compiled GPU kernels on the CPU: see README.md beside this file."""

from .counters import Counters, Traffic
from .emulator import EmulationError, Module
from .ptx import PtxError
from .tensor_map import TensorMap

__all__ = ["Counters", "EmulationError", "Module", "PtxError", "TensorMap", "Traffic"]
