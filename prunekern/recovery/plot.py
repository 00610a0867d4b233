"""The loss curve of a training as a picture. matplotlib is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_losses(curves: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Draws loss by step, a line for each name, into a file of the kind that its suffix names.

    Args:
        curves: Name -> losses of steps 1, 2, ...
        path: Where to; its folder must exist.

    Returns:
        The path.

    Raises:
        ValueError: matplotlib is not installed, or nothing is to be drawn.
    """
    if not any(curves.values()):
        raise ValueError("plot_losses: curves must have one step or more, got none")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "plot_losses: matplotlib must be installed, got none; pip install matplotlib"
        ) from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, losses in curves.items():
        axes.plot(range(1, len(losses) + 1), losses, label=name, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    return Path(path)
