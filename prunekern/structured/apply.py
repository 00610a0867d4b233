"""From a request to a smaller model and its report."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prunekern.structured.calibration import Calibration
from prunekern.structured.config import sync_config
from prunekern.structured.model import parameter_count
from prunekern.structured.report import RemovalReport, RemovedPart
from prunekern.structured.units import Request, apply_cut, plan_cuts, set_sizes


def remove_units(
    model: nn.Module,
    requests: dict[int, Request],
    by: str,
    calibration: Calibration | None,
    compensate: str,
    who: str,
    words: Callable[[nn.Module], str],
) -> RemovalReport:
    """Plans every cut, then makes them all.

    Args:
        model: Checked by `check_model`.
        requests: Layer -> what is to stay.
        by: See `plan_cuts`, as are the next three.
        calibration: See there.
        compensate: See there.
        who: See there.
        words: Says how many units a layer has, for the report.
    """
    cuts = plan_cuts(model, requests, by, calibration, compensate, who)
    layers = model.model.layers
    total = parameter_count(model)
    parts = []
    for i, cut in cuts.items():
        layer = layers[i]
        before, count = words(layer), parameter_count(layer)
        apply_cut(layer, cut)
        set_sizes(layer)
        after = parameter_count(layer)
        parts.append(RemovedPart(i, before, words(layer), count, after, cut.energy_kept))
    note = sync_config(model)
    chosen = "given" if all(r.is_given for r in requests.values()) else f"by {by}"
    refit = "" if compensate == "none" else f", compensated by {compensate}"
    title = f"{who} ({chosen}{refit})"
    return RemovalReport(title, tuple(parts), total, parameter_count(model), note)
