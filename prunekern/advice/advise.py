"""advise: from measured sensitivity and measured or modelled speed to a plan that was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunekern.advice import speed, whole_model
from prunekern.advice.apply import prune_as, round_as
from prunekern.advice.candidates import Candidate, default_candidates, parse
from prunekern.advice.choose import Option, Picks, cost_of, gain_of, search
from prunekern.advice.plan import LayerPlan, Plan
from prunekern.advice.sensitivity import LAYERS, sensitivities
from prunekern.advice.texts import CALIBRATION_WINDOWS, Parts, digest_of, parts_of
from prunekern.hardware import hardware
from prunekern.nn import SparseLinear
from prunekern.pruning import METHODS, statistic_of
from prunekern.pruning.layerwise import evaluating
from prunekern.targets import match_modules
from prunekern.timing import NOISE, check_tokens

Told = Callable[[str, float], None]


@dataclass(frozen=True)
class _Work:
    """What is asked, checked."""

    model: nn.Module
    linears: Mapping[str, nn.Module]
    candidates: tuple[Candidate, ...]
    method: str
    weights: Mapping[int, float]  # tokens at once -> share, of a sum of 1
    quality: float
    chip: str
    parts: Parts
    told: Told

    @property
    def budget(self) -> float:
        """How much the loss may rise, nats a token."""
        return math.log1p(self.quality)

    def shape(self, name: str) -> speed.Shape:
        """(out_features, in_features)."""
        return tuple(self.linears[name].weight.shape)


def advise(
    model: nn.Module,
    tokenizer: Any = None,
    text: str | Path | None = None,
    batches: Sequence[int] | Mapping[int, float] = (1, 8, 512),
    quality: float = 0.05,
    chip: str | None = None,
    candidates: Sequence[str] | None = None,
    *,
    targets: str | Sequence[str] = "all-linear",
    method: str = "sparsegpt",
    windows: int = CALIBRATION_WINDOWS,
    layers: int = LAYERS,
    state: str | Path | None = None,
    progress: Told = lambda what, share: None,
) -> Plan:
    """Which layers to prune to what, stored how, so that the model is fastest within a budget.

    Storages of all layers' shapes are timed; what is faster than dense is tried in each layer
    alone and the change of predictions measured; a knapsack takes the most time saved for the
    budget; the plan is carried out on the model, its perplexity measured on text that nothing else
    has seen, and the budget of the knapsack scaled until the measured perplexity holds the promise.
    The model is left as it was.

    Args:
        model: A dense causal language model of transformers.
        tokenizer: Of the model.
        text: Path of a UTF-8 file: its first windows calibrate, its last ones judge. Python's own
            documentation where left out.
        batches: Tokens at once, or tokens at once -> how much they count. Up to 64 are sequences
            that write a token each; more are a prompt that is read. Times are taken as shares of
            the whole model's at each, so that 1 counts as much as 512.
        quality: Perplexity on the text may rise by this share of the dense model's.
        chip: A GPU of `prunekern hardware --chip` to plan for by a model of it, without measuring;
            where left out, the machine and the device that the model is on.
        candidates: Such as "2:4", "70%" (unstructured) or a format that rounds, "2:4-int8"; where
            left out, all of `default_candidates`.
        targets: Layers that may be pruned, see `prunekern.targets.match_modules`; all in decoder
            layers.
        method: "magnitude", "wanda", "ria" or "sparsegpt".
        windows: For calibration, of 512 tokens or the model's longest.
        layers: Decoder layers whose sensitivity is measured; those between are interpolated.
        state: Folder in which what was measured of layers stays: a stopped run goes on there, and
            one with another budget, or other batches, reuses it.
        progress: Called with what is being done and the share of it that is done.

    Returns:
        The plan; all layers dense where nothing pays.

    Raises:
        ValueError: An argument is not one of the above; the model is as it was.
    """
    work = _check(
        model, tokenizer, text, batches, quality, chip, candidates, targets, method, windows,
        layers, progress,
    )  # fmt: skip
    with evaluating(model):
        times = _times(work)
        totals = _totals(work, times)
        paying = _paying(work, times, totals)
        found = sensitivities(
            model,
            {name: list(own) for name, own in paying.items() if own},
            method,
            work.parts.calibration,
            work.parts.compared,
            work.budget,
            layers,
            state,
            lambda share: progress("sensitivity", share),
        ) if any(paying.values()) else {}  # fmt: skip
        options = {
            name: [
                Option(one.divergence, paying[name][candidate][0], (candidate, one))
                for candidate, one in own.items()
                if candidate in paying[name]
            ]
            for name, own in found.items()
        }
        trial = _Trial(work, paying)
        picks, loss = search(options, work.budget, trial.measure)
        return _plan(work, times, totals, paying, found, picks, loss, trial)


def _check(
    model: nn.Module,
    tokenizer: Any,
    text: str | Path | None,
    batches: Sequence[int] | Mapping[int, float],
    quality: float,
    chip: str | None,
    candidates: Sequence[str] | None,
    targets: str | Sequence[str],
    method: str,
    windows: int,
    layers: int,
    told: Told,
) -> _Work:
    if tokenizer is None:
        raise ValueError("advise: tokenizer must be given, got None")
    if not 0 < quality < math.inf:
        raise ValueError(f"advise: quality must be a positive share, as 0.05, got {quality}")
    for name, value in (("windows", windows), ("layers", layers)):
        if type(value) is not int or value < 1:
            raise ValueError(f"advise: {name} must be 1 or more, got {value!r}")
    weights = dict(batches) if isinstance(batches, Mapping) else dict.fromkeys(batches, 1.0)
    for tokens, weight in weights.items():
        check_tokens(tokens, "advise")
        if not 0 < weight < math.inf:
            raise ValueError(f"advise: weights of batches must be positive, got {weight}")
    if not weights:
        raise ValueError("advise: batches must be one or more numbers of tokens, got none")
    total = sum(weights.values())
    statistic_of(method)
    linears = match_modules(model, targets, "advise", _is_dense_or_sparse)
    for name, module in linears.items():
        if isinstance(module, SparseLinear):
            raise ValueError(
                f"advise: {name} must be dense, got a SparseLinear ({module.kernel}); call "
                "prunekern.restore_linears(model) first"
            )
        if hasattr(module, "weight_orig"):
            raise ValueError(
                f"advise: {name} must have a plain weight, got one masked by torch.nn.utils.prune; "
                "call torch.nn.utils.prune.remove(module, 'weight') first"
            )
        if module.weight.device.type == "meta":
            raise ValueError(f"advise: {name} must hold data, got a meta tensor; load the model")
    return _Work(
        model,
        linears,
        default_candidates() if candidates is None else parse(candidates),
        method,
        {tokens: weight / total for tokens, weight in weights.items()},
        quality,
        speed.chip_of(chip) if chip is not None else "",
        parts_of(model, tokenizer, text, windows),
        told,
    )


def _is_dense_or_sparse(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, SparseLinear)


def _times(work: _Work) -> speed.Times:
    shapes = [work.shape(name) for name in work.linears]
    stored = speed.stored_of(work.candidates)
    if work.chip:
        return speed.modelled(shapes, stored, list(work.weights), work.chip)
    weight = next(iter(work.linears.values())).weight
    return speed.measured(
        shapes, stored, list(work.weights), weight.dtype, weight.device,
        lambda share: work.told("speed of layers", share),
    )  # fmt: skip


def _totals(work: _Work, times: speed.Times) -> dict[int, float]:
    """Tokens -> seconds of the dense model: measured, or of all its Linear layers as modelled."""
    layers = {
        tokens: sum(times.dense(work.shape(name), tokens) for name in work.linears)
        for tokens in work.weights
    }
    if not work.chip:
        found = whole_model.seconds(work.model, work.parts.held_out, list(work.weights), {})
        # Layers timed apart may take longer than within the model, never more than all of it.
        return {tokens: max(found[tokens][0], layers[tokens]) for tokens in work.weights}
    others = [
        tuple(module.weight.shape)
        for name, module in work.model.named_modules()
        if type(module) is nn.Linear and name not in work.linears
    ]
    rest = speed.modelled(others, (), list(work.weights), work.chip)
    return {
        tokens: layers[tokens] + sum(rest.dense(shape, tokens) for shape in others)
        for tokens in work.weights
    }


# Candidate -> (gain, storage, tokens -> seconds), of one layer
_Paying = dict[Candidate, tuple[float, str, dict[int, float]]]


def _paying(work: _Work, times: speed.Times, totals: Mapping[int, float]) -> dict[str, _Paying]:
    """Layer -> what is faster than dense there: no other candidate needs to be measured.

    Nor one that a candidate with fewer zeros is as fast as.
    """
    by_shape: dict[speed.Shape, _Paying] = {}
    for name in work.linears:
        shape = work.shape(name)
        if shape in by_shape:
            continue
        own: _Paying = {}
        for candidate in work.candidates:
            best = times.best(shape, candidate, work.weights)
            if best is None:
                continue
            kernel, seconds = best
            dense = {tokens: times.dense(shape, tokens) for tokens in work.weights}
            gain = sum(
                share * (dense[tokens] - seconds[tokens]) / totals[tokens]
                for tokens, share in work.weights.items()
            )
            least = sum(
                share * NOISE * dense[tokens] / totals[tokens]
                for tokens, share in work.weights.items()
            )
            if gain > least:
                own[candidate] = (gain, kernel, seconds)
        by_shape[shape] = {
            candidate: facts
            for candidate, facts in own.items()
            if not any(
                other.sparsity < candidate.sparsity
                and other.pattern == candidate.pattern
                and own[other][0] >= facts[0]
                for other in own
            )
        }
    return {name: by_shape[work.shape(name)] for name in work.linears}


class _Trial:
    """Carries plans out on the model, measures them, and undoes them."""

    def __init__(self, work: _Work, paying: Mapping[str, _Paying]) -> None:
        self._work, self._paying = work, paying
        self.dense_loss = whole_model.loss(work.model, work.parts.held_out)
        self.losses: list[float] = []  # of the plans measured, above dense
        self.modules: dict[str, nn.Module] = {}  # sparse layers of the best plan within the budget
        self._best_gain = 0.0

    def measure(self, picks: Picks) -> float:
        """Loss above dense; keeps the sparse layers if the plan is the best so far."""
        work = self._work
        wanted = {name: option.what[0] for name, option in picks.items()}
        uses_text = METHODS[work.method].needs != "weights"
        what = f"plan {len(self.losses) + 1}, {len(picks)} layers"
        with whole_model.restoring(work.model, list(wanted)):
            prune_as(
                work.model,
                wanted,
                work.method,
                work.parts.calibration if uses_text else None,
                **({"progress": lambda share, _: work.told(what, share)} if uses_text else {}),
            )
            round_as(work.model, wanted)
            rise = whole_model.loss(work.model, work.parts.held_out) - self.dense_loss
            self.losses.append(rise)
            if rise <= work.budget and gain_of(picks) > self._best_gain and not work.chip:
                self._best_gain = gain_of(picks)
                self.modules = {
                    name: SparseLinear.from_linear(
                        work.linears[name], self._paying[name][candidate][1], prune=False
                    )
                    for name, candidate in wanted.items()
                }
        return rise


def _plan(
    work: _Work,
    times: speed.Times,
    totals: Mapping[int, float],
    paying: Mapping[str, _Paying],
    found: Mapping[str, Mapping[Candidate, Any]],
    picks: Picks,
    rise: float,
    trial: _Trial,
) -> Plan:
    layers = []
    for name in work.linears:
        shape = work.shape(name)
        dense = {t: times.dense(shape, t) for t in work.weights}
        if name not in picks:
            reason = _why_dense(paying[name], found.get(name, {}), work.budget)
            layers.append(LayerPlan(name, shape, dense, dense, reason=reason))
            continue
        candidate, one = picks[name].what
        _, kernel, seconds = paying[name][candidate]
        what = (kernel, candidate.pattern, candidate.sparsity, one.divergence)
        layers.append(LayerPlan(name, shape, dense, seconds, *what))
    predicted = {
        t: totals[t] / (totals[t] - sum(one.seconds_dense[t] - one.seconds[t] for one in layers))
        for t in work.weights
    }
    measured: dict[int, float] = {}
    bytes_dense = bytes_planned = whole_model.model_bytes(work.model)
    if trial.modules:
        work.told("speed of the plan", 0.0)
        pairs = whole_model.seconds(
            work.model, work.parts.held_out, list(work.weights), trial.modules
        )
        work.told("speed of the plan", 1.0)
        measured = {tokens: dense / planned for tokens, (dense, planned) in pairs.items()}
        with whole_model.swapped(work.model, trial.modules):
            bytes_planned = whole_model.model_bytes(work.model)
    uses_text = METHODS[work.method].needs != "weights"
    machine = hardware()
    device = next(work.model.parameters()).device
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    here = machine.gpu if device.type == "cuda" else f"{machine.cpu}, {threads}"
    dtype = str(next(iter(work.linears.values())).weight.dtype).removeprefix("torch.")
    return Plan(
        layers=tuple(layers),
        model=f"{type(work.model).__name__}, {dtype}",
        method=work.method,
        quality=work.quality,
        text=work.parts.name,
        calibration=tuple(work.parts.calibration.shape),
        calibration_digest=digest_of(work.parts.calibration if uses_text else None),
        default_text=work.parts.is_default,
        batches=dict(work.weights),
        speed_of=work.chip or here,
        modelled=bool(work.chip),
        perplexity_dense=math.exp(trial.dense_loss),
        perplexity_predicted=math.exp(trial.dense_loss + cost_of(picks)),
        perplexity_measured=math.exp(trial.dense_loss + rise),
        speedup_predicted=predicted,
        speedup_measured=measured,
        bytes_dense=bytes_dense,
        bytes_planned=bytes_planned,
        notes=_notes(work, times, found, trial),
    )


def _why_dense(paying: _Paying, found: Mapping[Candidate, Any], budget: float) -> str:
    if not paying:
        return "nothing is faster"
    if not found:
        return f"each costs more than {budget:.3g} nats alone"
    return "saves too little for its cost"


def _notes(
    work: _Work,
    times: speed.Times,
    found: Mapping[str, Mapping[Candidate, Any]],
    trial: _Trial,
) -> tuple[str, ...]:
    notes = []
    between = sum(not all(one.measured for one in own.values()) for own in found.values())
    if between:
        notes.append(f"sensitivity of {between} of {len(found)} layers was interpolated")
    if times.missing:
        notes.append(f"no model of {', '.join(times.missing)} on {work.chip}: left out")
    if trial.losses:
        tried = ", ".join(f"{math.expm1(loss):+.1%}" for loss in trial.losses)
        notes.append(f"plans measured on the way: {tried} perplexity")
    return tuple(notes)
