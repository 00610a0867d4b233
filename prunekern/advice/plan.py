"""A plan: which layer is pruned how and stored as what, what it costs and what it gains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunekern.advice.candidates import Candidate
from prunekern.formats import FORMATS
from prunekern.pruning.masks import parse_pattern
from prunekern.timing import DENSE

VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    """What is done to one layer.

    Attributes:
        name: In the model.
        shape: (out_features, in_features).
        seconds_dense: Tokens -> seconds of the dense layer.
        seconds: Tokens -> seconds as planned.
        kernel: The storage, or "dense".
        pattern: "N:M" or "unstructured"; "" where it stays dense.
        sparsity: Share of zeros.
        cost: Divergence of the model with this layer pruned alone, nats a token.
        reason: Why it stays dense, or "".
    """

    name: str
    shape: tuple[int, int]
    seconds_dense: Mapping[int, float]
    seconds: Mapping[int, float]
    kernel: str = DENSE
    pattern: str = ""
    sparsity: float = 0.0
    cost: float = 0.0
    reason: str = ""

    @property
    def candidate(self) -> Candidate | None:
        """What is done, None for nothing."""
        if self.kernel == DENSE:
            return None
        exact = Candidate(self.pattern, self.sparsity)
        if self.kernel in exact.storages:
            return exact
        return Candidate(self.pattern, self.sparsity, self.kernel)


@dataclass(frozen=True)
class Plan:
    """What `advise` found; `print` shows it, `apply` does it.

    Attributes:
        layers: All that were looked at, in the model's order.
        model: Its class and dtype.
        method: Of pruning.
        quality: Perplexity may rise by this share.
        text: What perplexity was measured on.
        calibration: (windows, tokens of each) that the method looks at.
        calibration_digest: Of their tokens; "" for a method that looks at none.
        default_text: Whether the text is the one that comes with Python.
        batches: Tokens at once -> how much they count.
        speed_of: What times are of: this machine, or a GPU that was modelled.
        modelled: Whether times were modelled, not measured.
        perplexity_dense, perplexity_predicted, perplexity_measured: On the text.
        speedup_predicted: Tokens -> time of the dense model / of the planned one, from layers.
        speedup_measured: The same, measured on the whole model; empty where it is not here.
        bytes_dense, bytes_planned: Of all weights of the model.
        notes: What else there is to know.
    """

    layers: tuple[LayerPlan, ...]
    model: str
    method: str
    quality: float
    text: str
    calibration: tuple[int, int]
    calibration_digest: str
    default_text: bool
    batches: Mapping[int, float]
    speed_of: str
    modelled: bool
    perplexity_dense: float
    perplexity_predicted: float
    perplexity_measured: float
    speedup_predicted: Mapping[int, float]
    speedup_measured: Mapping[int, float]
    bytes_dense: int
    bytes_planned: int
    notes: tuple[str, ...] = ()

    @property
    def pruned(self) -> tuple[LayerPlan, ...]:
        """The layers that do not stay dense."""
        return tuple(layer for layer in self.layers if layer.kernel != DENSE)

    def __str__(self) -> str:
        from prunekern.advice.report import text_of

        return text_of(self)

    def to_json(self) -> str:
        """All of it; `from_json` reads it back."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: It is not one, or holds what no plan does.
        """
        try:
            fields = dict(json.loads(text))
            if fields.pop("version") != VERSION:
                raise ValueError("of another version")
            layers = tuple(LayerPlan(**_read_layer(layer)) for layer in fields.pop("layers"))
            for name in ("batches", "speedup_predicted", "speedup_measured"):
                fields[name] = _by_tokens(fields[name])
            for name in ("calibration", "notes"):
                fields[name] = tuple(fields[name])
            return cls(layers=layers, **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"from_json: plan must be what Plan.to_json wrote, got {error!r}"
            ) from None


def _read_layer(layer: dict[str, Any]) -> dict[str, Any]:
    fields = dict(layer)
    fields["shape"] = tuple(map(int, fields["shape"]))
    for name in ("seconds_dense", "seconds"):
        fields[name] = _by_tokens(fields[name])
    if fields["kernel"] not in (DENSE, *FORMATS):
        raise ValueError(f"unknown kernel {fields['kernel']!r} of {fields['name']}")
    if fields["kernel"] != DENSE:
        parse_pattern(fields["pattern"], "from_json")
    return fields


def _by_tokens(given: Mapping[str, float]) -> dict[int, float]:
    return {int(tokens): float(value) for tokens, value in given.items()}
