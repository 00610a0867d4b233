"""What pruning one layer alone does to the model's predictions: measured, layer after layer.

    divergence   KL(dense || pruned), nats a token: how far the predicted distribution moves
    loss_rise    of the text's own tokens, nats a token

On a text that is as the model expects it the two are equal on average, but the loss of few tokens
also goes up and down by chance, and then by more than one layer does. So plans are made of
divergences, which are never negative, and judged by the loss of the whole plan.

At 16 bits any change, however small, makes all that follows round otherwise, which alone diverges
by some 0.001 nats. That is measured, too, once for each decoder layer, and taken off.

Only what lies behind a pruned layer is run again: the dense inputs of every decoder layer are kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunekern import formats
from prunekern.advice.candidates import Candidate
from prunekern.pruning import pruned_weight, statistic_of
from prunekern.pruning.input_statistics import InputStatistics
from prunekern.pruning.layerwise import Activations, decoder_layers, evaluating, scratch
from prunekern.pruning.state import digest
from prunekern.pruning.torch_masks import stored_weight

LAYERS = 16  # decoder layers that are measured; those between are interpolated


@dataclass(frozen=True)
class Sensitivity:
    """What one candidate does in one layer.

    Attributes:
        divergence: KL(dense || pruned), nats a token, without that of rounding.
        loss_rise: Nats a token.
        measured: False where it was interpolated.
    """

    divergence: float
    loss_rise: float
    measured: bool = True


Sensitivities = dict[str, dict[Candidate, Sensitivity]]


def sensitivities(
    model: nn.Module,
    wanted: Mapping[str, Sequence[Candidate]],
    method: str,
    calibration: Tensor,
    windows: Tensor,
    limit: float = math.inf,
    layers: int = LAYERS,
    state: str | Path | None = None,
    told: Callable[[float], None] = lambda share: None,
) -> Sensitivities:
    """Measures each wanted candidate in each layer, alone; the model is left as it was.

    Args:
        model: Of transformers, with decoder layers at model.layers.
        wanted: Layer -> what may be done to it.
        method: "magnitude", "wanda", "ria" or "sparsegpt".
        calibration: int64 [count, size], what the method looks at.
        windows: int64 [count, size], what predictions are judged on.
        limit: A layer's candidates that prune more are not measured once one diverges by more.
        layers: Decoder layers that are measured at most, evenly spread, the first and last among
            them; the same layer's candidates between two of them are interpolated.
        state: Folder in which what was measured stays, and from which the same call goes on.
        told: Called with the share done.

    Returns:
        Layer -> candidate -> what it does; candidates beyond the limit are not there.

    Raises:
        ValueError: Another kind of model, a layer outside of the decoder layers, a method that
            looks at more than one layer, or a state of another run.
    """
    make_statistic = statistic_of(method)
    prefix, decoder = decoder_layers(model, method)
    by_layer: dict[int, dict[str, Sequence[Candidate]]] = {}
    for name, own in wanted.items():
        head, _, rest = name.partition(f"{prefix}.")
        if head or not rest:
            raise ValueError(f"advise: targets must be in decoder layers ({prefix}.*), got {name}")
        by_layer.setdefault(int(rest.split(".")[0]), {})[name] = own
    chosen = spread(sorted(by_layer), layers)
    facts = {"method": method, "windows": windows.tolist()}
    tensors = [*model.state_dict().items(), ("calibration", calibration)]
    kept = _State(state, digest(tensors, **facts) if state is not None else "")
    found: Sensitivities = {name: dict(kept.found.get(name, {})) for name in wanted}
    with evaluating(model), scratch(None) as make:
        judge = _Judge(model, decoder, windows)
        inputs = Activations(model, decoder, calibration, make) if make_statistic else None
        for index in range(chosen[-1] + 1):
            names = by_layer.get(index, {}) if index in chosen else {}
            open_names = [n for n in names if _open(names[n], found[n], limit)]
            floor = judge.rounding(index) if open_names else 0.0
            for name, statistic in _statistics(model, inputs, index, open_names, make_statistic):
                module = model.get_submodule(name)
                while candidate := _open(names[name], found[name], limit):
                    weight = pruned_weight(
                        name, module, candidate.pattern, method, _sparsity(candidate), statistic
                    )
                    if candidate.rounded:
                        weight = rounded(weight.to(module.weight.dtype), candidate.rounded)
                    with holding(module, weight):
                        found[name][candidate] = judge.from_layer(index, floor)
                kept.save(found)
            if inputs is not None and index < chosen[-1]:
                inputs.run(index, keep=True, tick=lambda: None)
            told((index + 1) / (chosen[-1] + 1))
    _interpolate(found, by_layer, chosen)
    return {name: _within(own, limit) for name, own in found.items()}


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of the indices, evenly spread, the first and the last among them."""
    if count >= len(indices):
        return list(indices)
    last = len(indices) - 1
    return [indices[round(i * last / max(count - 1, 1))] for i in range(max(count, 1))]


def rounded(weight: Tensor, kernel: str) -> Tensor:
    """What a storage that rounds makes of a weight."""
    return formats.decompress(formats.compress(weight + 0.0, kernel))


@contextlib.contextmanager
def holding(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """While inside, the module has another weight."""
    own = stored_weight(module)
    dense = own.detach().clone()
    try:
        own.copy_(weight)
        yield
    finally:
        own.copy_(dense)


class _Judge:
    """Dense predictions for the windows, and the inputs of every decoder layer on the way."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, windows: Tensor) -> None:
        self._model, self._layers = model, layers
        self._windows = windows.to(next(model.parameters()).device)
        self._hidden: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: self._hidden.append(
                    args[0] if args else kwargs["hidden_states"]
                ),
                with_kwargs=True,
            )
            for layer in layers
        ]
        try:
            logits, self._own = self._logits()
        finally:
            for hook in hooks:
                hook.remove()
        self._probabilities = logits.softmax(-1)
        self._negative_entropy = (self._probabilities * logits.log_softmax(-1)).sum(-1)

    def from_layer(self, index: int, floor: float = 0.0) -> Sensitivity:
        """How far predictions are from the dense ones, the layers before `index` being dense.

        Args:
            index: Decoder layer.
            floor: Divergence that rounding alone makes.
        """
        divergence, rise = self._differences(index, self._hidden[index])
        return Sensitivity(max(divergence - floor, 0.0), rise)

    def rounding(self, index: int) -> float:
        """Divergence where the inputs of a decoder layer are changed in their last bit."""
        hidden = self._hidden[index]
        generator = torch.Generator().manual_seed(index)
        sign = torch.randint(0, 2, hidden.shape, generator=generator).to(hidden) * 2 - 1
        return self._differences(index, hidden * (1 + torch.finfo(hidden.dtype).eps * sign))[0]

    def _differences(self, index: int, hidden: Tensor) -> tuple[float, float]:
        with _starting_at(self._layers, index, hidden):
            logits, own = self._logits()
        # sum p (log p - log q) with log q = logits - norm: one pass over the vocabulary each.
        norm = logits.logsumexp(-1)
        expected = torch.bmm(self._probabilities.unsqueeze(1), logits.unsqueeze(2)).flatten()
        divergence = (self._negative_entropy + norm - expected).mean().item()
        return divergence, (own - self._own).mean().item()

    def _logits(self) -> tuple[Tensor, Tensor]:
        """Of all positions, [tokens, vocabulary], and the loss of the text's own tokens."""
        logits = self._model(self._windows, use_cache=False).logits.float()
        shown = logits[:, :-1].flatten(0, 1)
        own = cross_entropy(shown, self._windows[:, 1:].flatten(), reduction="none")
        return logits.flatten(0, 1), own


@contextlib.contextmanager
def _starting_at(layers: nn.ModuleList, index: int, hidden: Tensor) -> Iterator[None]:
    """While inside, a forward pass of the model begins at decoder layer `index` with `hidden`.

    The layers before it hand on what they are given, so that all else that the model does, masks
    and positions and its head, is done as ever.
    """

    def replace_input(_: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    skipped = list(layers)[:index]
    hook = layers[index].register_forward_pre_hook(replace_input, with_kwargs=True)
    for layer in skipped:
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        yield
    finally:
        hook.remove()
        for layer in skipped:
            del layer.forward


def _statistics(
    model: nn.Module,
    inputs: Activations | None,
    index: int,
    names: Sequence[str],
    make_statistic: Any,
) -> Iterator[tuple[str, Any]]:
    """Each layer with what is known of its inputs."""
    if inputs is None or not names:
        yield from ((name, None) for name in names)
        return
    modules = {name: model.get_submodule(name) for name in names}
    with InputStatistics(modules, make_statistic, stop=True) as statistics:
        inputs.run(index, keep=False, tick=lambda: None, after_window=statistics.next_window)
    groups = statistics.groups()
    while groups:
        # Popped, so that a Hessian is freed when the last of its layers is done.
        statistic, members = groups.pop(0)
        yield from ((name, statistic) for name in members)


def _sparsity(candidate: Candidate) -> float | None:
    return candidate.sparsity if candidate.pattern == "unstructured" else None


def _open(
    wanted: Sequence[Candidate], found: Mapping[Candidate, Sensitivity], limit: float
) -> Candidate | None:
    """The next candidate to measure, the one that prunes least first; None if all is known."""
    for candidate in sorted(wanted, key=_order):
        if candidate not in found:
            return candidate
        if found[candidate].divergence > limit:
            return None
    return None


def _order(candidate: Candidate) -> tuple[float, bool, str]:
    # At equal sparsity the free pattern costs less than N:M, and rounding comes on top.
    return candidate.sparsity, candidate.pattern != "unstructured", candidate.rounded


def _within(own: Mapping[Candidate, Sensitivity], limit: float) -> dict[Candidate, Sensitivity]:
    return {candidate: one for candidate, one in own.items() if one.divergence <= limit}


def _interpolate(
    found: Sensitivities, by_layer: Mapping[int, Mapping[str, Any]], chosen: Sequence[int]
) -> None:
    """Fills in decoder layers that were not measured: geometric means of their neighbours'."""
    for index in sorted(set(by_layer) - set(chosen)):
        below = max(i for i in chosen if i < index)
        above = min(i for i in chosen if i > index)
        share = (index - below) / (above - below)
        for name, wanted in by_layer[index].items():
            ends = [found.get(_twin(name, index, i), {}) for i in (below, above)]
            for candidate in wanted:
                if all(candidate in end for end in ends):
                    a, b = (end[candidate] for end in ends)
                    logs = (math.log(max(one.divergence, 1e-9)) for one in (a, b))
                    low, high = logs
                    found[name][candidate] = Sensitivity(
                        math.exp(low + share * (high - low)),
                        a.loss_rise + share * (b.loss_rise - a.loss_rise),
                        measured=False,
                    )


def _twin(name: str, index: int, other: int) -> str:
    """The same layer of another decoder layer."""
    return name.replace(f".{index}.", f".{other}.", 1)


class _State:
    """What was measured, in a file that is whole or not there."""

    def __init__(self, folder: str | Path | None, run: str) -> None:
        self._path = Path(folder) / "sensitivity.json" if folder is not None else None
        self._run = run
        self.found: Sensitivities = {}
        if self._path is None or not self._path.exists():
            return
        try:
            document = json.loads(self._path.read_text())
            entries = document["found"]
            self.found = {
                name: {Candidate(*key): Sensitivity(*numbers) for key, numbers in own}
                for name, own in entries.items()
            }
        except (ValueError, KeyError, TypeError):
            document = {"run": "damaged"}
        if document.get("run") != run:
            raise ValueError(
                "advise: state must be a folder of this very run (model, method, text), got "
                f"{folder} of another; name an empty one"
            )

    def save(self, found: Sensitivities) -> None:
        """Writes all that is known."""
        if self._path is None:
            return
        entries = {
            name: [
                [
                    [candidate.pattern, candidate.sparsity, candidate.rounded],
                    [one.divergence, one.loss_rise],
                ]
                for candidate, one in own.items()
            ]
            for name, own in found.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"run": self._run, "found": entries}))
        os.replace(part, self._path)
