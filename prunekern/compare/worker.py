"""One process a variant, so that its memory is its own; the parent asks, one process at a time.

All stay alive until the end and are asked in rounds, dense and sparse side by side: what the
machine does besides falls on all of them alike.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prunekern.compare.variants import (
    DTYPES,
    REMOVED,
    Variant,
    alone,
    build,
    model_bytes,
    target_names,
    weight_bytes,
)


@dataclass(frozen=True)
class Job:
    """What a worker needs to make its model."""

    folder: str  # with config.json, weights and tokenizer
    variant: Variant
    targets: tuple[str, ...] | str
    threads: int
    windows: Any  # int64 [count, size]
    calibration: Any  # the same of other text, or None
    scratch: str


class Worker:
    """The parent's side of one process."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported once, in the server that the workers are forked from: seconds less for each.
        context.set_forkserver_preload(["torch", "transformers.models.llama", "prunekern.compare"])
        self.variant = job.variant
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(job, child), daemon=True)
        self._process.start()
        child.close()

    def ask(self, request: str, *args: Any) -> Any:
        """Sends a request and waits for its answer.

        Raises:
            ValueError: The user's input was wrong.
            RuntimeError: The worker failed or died.
        """
        self.tell(request, *args)
        return self.answer()

    def tell(self, request: str, *args: Any) -> None:
        """Sends a request; `answer` waits for what comes back."""
        with contextlib.suppress(OSError):  # a dead process is found out by answer()
            self._pipe.send((request, args))

    def answer(self) -> Any:
        """Waits for the answer to the last request.

        Raises:
            ValueError: The user's input was wrong.
            RuntimeError: The worker failed or died.
        """
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(
                f"compare: the process of {self.variant.name} must survive, got exit code "
                f"{self._process.exitcode} (killed for want of memory?)"
            ) from None
        if kind == "input":
            raise ValueError(answer)
        if kind == "error":
            raise RuntimeError(f"compare: {self.variant.name} failed:\n{answer}")
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _serve(job: Job, pipe: Connection) -> None:
    state: dict[str, Any] = {}
    while True:
        try:
            request, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("ok", _REQUESTS[request](job, state, *args)))
        except ValueError as error:
            pipe.send(("input", str(error)))
        except Exception:
            pipe.send(("error", traceback.format_exc()))


def load_model(folder: str, dtype: str) -> Any:
    """The causal language model in a folder, without a progress bar.

    Raises:
        ValueError: transformers can not load it.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"compare: model must be a causal language model, got {folder}: {error}"
        ) from None
    # Weights straight from a safetensors file are views of it, mapped as a whole: none of it would
    # leave the resident memory while one tensor lives. Copies are what any other loader makes.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def _load(job: Job, state: dict[str, Any]) -> dict[str, Any]:
    import torch

    from prunekern.compare import measure
    from prunekern.compare.sweep import commonest_shape

    warnings.simplefilter("ignore")
    torch.set_num_threads(job.threads)
    model = load_model(job.folder, job.variant.dtype)
    names = target_names(model, job.variant, job.targets)
    dense = [model.get_submodule(name) for name in names]
    count = sum(layer.weight.numel() for layer in dense)
    dense_bytes = sum(weight_bytes(layer) for layer in dense)
    del dense
    build(model, job.variant, job.targets, job.calibration)
    layers = [model.get_submodule(name) for name in names]
    left = sum(int(_dense_weight(layer).count_nonzero()) for layer in layers)
    shapes = [_dense_weight(layer).shape for layer in layers]
    largest = max(range(len(names)), key=lambda i: shapes[i].numel())
    state |= {
        "model": model,
        # One of other sizes has no dense twin to be timed against.
        "layer": None if job.variant.storage == REMOVED else alone(layers[largest]),
        "in_features": shapes[largest][1],
    }
    result = {
        "layers": len(names),
        "layer_name": names[largest],
        "layer_shape": tuple(shapes[largest]),
        "commonest_shape": commonest_shape([tuple(shape) for shape in shapes]),
        "sparsity": 1 - left / count,
        "dense_weight_bytes": dense_bytes,
        "pruned_weight_bytes": sum(weight_bytes(layer) for layer in layers),
        "model_weight_bytes": model_bytes(model),
        "file_bytes": measure.file_bytes(model, Path(job.scratch)),
    }
    measure.reset_peak_rss()
    return result


def _dense_weight(layer: Any) -> Any:
    return layer.csr.to_dense() if hasattr(layer, "csr") else layer.weight


def _nll(job: Job, state: dict[str, Any], first: int, count: int) -> float:
    from prunekern.compare import measure

    return measure.negative_log_likelihood(state["model"], job.windows[first : first + count])


def _speed(job: Job, state: dict[str, Any]) -> dict[str, Any]:
    from prunekern.compare import measure

    model, layer, compiled = state["model"], state["layer"], job.variant.compiled
    return {
        "prefill_tokens_per_s": measure.prefill_tokens_per_s(model, job.windows),
        "decode_tokens_per_s": measure.decode_tokens_per_s(model, job.windows, 1, compiled),
        "decode_tokens_per_s_batch4": measure.decode_tokens_per_s(model, job.windows, 4, compiled),
        "layer_ms": {}
        if layer is None
        else measure.layer_ms(layer, state["in_features"], DTYPES[job.variant.dtype]),
        "peak_rss_bytes": measure.peak_rss_bytes(),
    }


def _errors(job: Job, state: dict[str, Any], prunings: list[Any]) -> list[dict[str, Any]]:
    from prunekern.compare.sensitivity import layer_errors

    return layer_errors(state["model"], job.targets, prunings, job.windows[:1])


def _divergence(job: Job, state: dict[str, Any], name: str, pruning: Any) -> float:
    from prunekern.compare.sensitivity import divergence, log_probabilities

    model, window = state["model"], job.windows[:1]
    if "log_probabilities" not in state:
        state["log_probabilities"] = log_probabilities(model, window)
    return divergence(model, name, pruning, window, state["log_probabilities"])


_REQUESTS = {
    "load": _load,
    "nll": _nll,
    "speed": _speed,
    "errors": _errors,
    "divergence": _divergence,
}


def check_targets(model: Any, targets: Sequence[str] | str) -> None:
    """Raises ValueError early, in the parent, if the targets match nothing."""
    from prunekern.targets import match_modules

    match_modules(model, targets, "compare")
