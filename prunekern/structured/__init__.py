"""Structured pruning that really removes: heads, MLP channels, width, layers.

What is left is a smaller dense model that needs no kernels of ours. Every call checks and computes
everything before it changes the first module.
"""

from prunekern.structured.channels import remove_channels
from prunekern.structured.heads import remove_heads
from prunekern.structured.hidden import remove_hidden
from prunekern.structured.layers import remove_layers
from prunekern.structured.report import RemovalReport, RemovedPart

__all__ = [
    "RemovalReport",
    "RemovedPart",
    "remove_channels",
    "remove_heads",
    "remove_hidden",
    "remove_layers",
]
