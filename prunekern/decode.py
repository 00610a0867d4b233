"""Greedy decoding by one compiled step: transformers' static cache, torch.compile around a token.

    prompt ── model, as it is ──▶ cache filled, first token
    token, position ── step: embed, layers, head, argmax ──▶ next token       compiled once

Eager decoding of a small model spends as long between products as in them: some thousand launches
a token from Python. The step is one graph of fixed shapes, so that what lies between the products
(norms, rotary embedding, cache, residuals) becomes a few generated kernels. The cache has a fixed
length, a multiple of 256: a longer text compiles once more, another prompt does not.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache as cached
from typing import Any

import torch
from torch import Tensor, nn

CACHE_STEP = 256  # tokens, by which caches grow
_RECOMPILE_LIMIT = 64  # models, batches and cache lengths in one process; torch's own is 8


@dataclass(frozen=True)
class Generated:
    """What was written, and how fast.

    Attributes:
        tokens: int64 [batch, new], as many as the longest sequence took; after its end a sequence
            repeats the token that ended it.
        prefill_seconds: Of reading the prompts and writing the first token.
        step_seconds: Of each further token, but those whose step had to be compiled.
        compile_seconds: Of these, 0 where an earlier call had compiled the step.
    """

    tokens: Tensor
    prefill_seconds: float
    step_seconds: tuple[float, ...]
    compile_seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Of decoding, all sequences together; 0 where no step was timed."""
        steps = len(self.step_seconds)
        return len(self.tokens) * steps / sum(self.step_seconds) if steps else 0.0


class Decoder:
    """Writes with one model, again and again, into the same caches."""

    def __init__(self, model: nn.Module, compiled: bool = True, backend: str = "inductor") -> None:
        """Nothing is compiled before the first token.

        Args:
            model: A causal language model of transformers, its layers dense, sparse or fused.
            compiled: Whether to compile; without it the same loop runs the model as it is.
            backend: Of torch.compile.

        Raises:
            ValueError: Another kind of model.
        """
        if not hasattr(model, "generate") or not hasattr(model, "config"):
            raise ValueError(
                "generate: model must be a causal language model of transformers, "
                f"got {type(model).__name__}"
            )
        self._model = model
        names = inspect.signature(model.forward).parameters
        # transformers has renamed it.
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._caches: dict[tuple[int, int], Any] = {}
        self._step: Callable = _step
        if compiled:
            # CUDA graphs where there are launches to save.
            graphs = backend == "inductor" and model.device.type == "cuda"
            self._step = _compiled_step(backend, "reduce-overhead" if graphs else None)

    # Not within inference_mode, whose tensors a cache could not keep for calls outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, max_new_tokens: int = 64, eos: Collection[int] | None = None
    ) -> Generated:
        """Continues each prompt by the likeliest token, see `prunekern.generate`."""
        _check(self._model, input_ids, max_new_tokens)
        (batch, size), device = input_ids.shape, input_ids.device
        ends = torch.tensor(sorted(_ends(self._model) if eos is None else eos), device=device)
        cache = {self._cache_name: self._cache(batch, size + max_new_tokens)}
        start = time.perf_counter()
        logits = self._model(input_ids=input_ids.clone(), use_cache=True, **cache).logits
        written = [logits[:, -1:].argmax(-1)]
        ended = torch.isin(written[0], ends)
        all_ended = bool(ended.all())  # waits for a GPU
        prefill_seconds = time.perf_counter() - start

        step_seconds, compile_seconds = [], 0.0
        while len(written) < max_new_tokens and not all_ended:
            graphs, start = _graphs_compiled(), time.perf_counter()
            position = torch.full((1, 1), size + len(written) - 1, device=device)
            # Whether the graph fits is asked at the first step of a call, not at each: 2 of 16 ms
            # for the default model on two cores. Nothing of the model changes within a call.
            with (
                torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT),
                torch.compiler.set_stance("default", skip_guard_eval_unsafe=len(written) > 1),
            ):
                token = self._step(self._model, written[-1], position, cache)
            # A tensor of ours: a CUDA graph writes to the same place each time.
            written.append(torch.where(ended, written[-1], token))
            ended = torch.isin(written[-1], ends)
            all_ended = bool(ended.all())
            seconds = time.perf_counter() - start
            if _graphs_compiled() > graphs:
                compile_seconds += seconds
            else:
                step_seconds.append(seconds)
        tokens = torch.cat(written, 1)
        return Generated(tokens, prefill_seconds, tuple(step_seconds), compile_seconds)

    def _cache(self, batch: int, tokens: int) -> Any:
        """An empty cache for so many tokens: the one of earlier calls, where a graph knows it."""
        from transformers import StaticCache

        length = -(-tokens // CACHE_STEP) * CACHE_STEP
        cache = self._caches.get((batch, length))
        if cache is None:
            cache = StaticCache(config=self._model.config, max_cache_len=length)
            self._caches[batch, length] = cache
        else:
            cache.reset()
        return cache


def generate(
    model: nn.Module,
    input_ids: Tensor,
    max_new_tokens: int = 64,
    *,
    compiled: bool = True,
    eos: Collection[int] | None = None,
) -> Generated:
    """Continues each prompt by its likeliest token, again and again, with a compiled step.

    The first call compiles, which `compile_seconds` tells; later ones of this process do not, if
    batch and cache length, a multiple of 256 tokens, are the same. Tokens are those of
    `model.generate(do_sample=False)`, in 16 bits up to the first place where two tokens are equally
    likely but for rounding. For sampling and padded batches take transformers' own `generate`.

    Args:
        model: A causal language model of transformers, its layers dense, sparse or fused.
        input_ids: int64 [batch, tokens], prompts of one length, without padding.
        max_new_tokens: Tokens to write at most, 1 or more.
        compiled: Whether to compile; without it the same loop runs the model as it is.
        eos: Tokens that end a sequence; those of model.generation_config where left out.

    Raises:
        ValueError: Another kind of model, prompts of another shape, no token to write, or more
            tokens than the model takes.
    """
    return Decoder(model, compiled).generate(input_ids, max_new_tokens, eos)


def _step(model: nn.Module, token: Tensor, position: Tensor, cache: dict[str, Any]) -> Tensor:
    """The likeliest token after `token` [batch, 1] at `position` [1, 1]: [batch, 1]."""
    out = model(input_ids=token, position_ids=position, use_cache=True, **cache)
    return out.logits[:, -1:].argmax(-1)


@cached
def _compiled_step(backend: str, mode: str | None) -> Callable:
    """One for all models: torch keeps a graph for each and finds the one that fits."""
    return torch.compile(_step, backend=backend, mode=mode, fullgraph=True, dynamic=False)


def _graphs_compiled() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _ends(model: nn.Module) -> Collection[int]:
    """The tokens that end a sequence, by the model's own settings."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        return ()
    return eos if isinstance(eos, Collection) else (eos,)


def _check(model: nn.Module, input_ids: Tensor, max_new_tokens: int) -> None:
    if input_ids.dim() != 2 or input_ids.dtype != torch.int64 or input_ids.numel() == 0:
        raise ValueError(
            "generate: input_ids must be int64 [batch, tokens] with one token or more, got "
            f"{input_ids.dtype} {list(input_ids.shape)}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens must be 1 or more, got {max_new_tokens}")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and input_ids.shape[1] + max_new_tokens > longest:
        raise ValueError(
            f"generate: prompt and max_new_tokens must be at most {longest} tokens for this model, "
            f"got {input_ids.shape[1]} and {max_new_tokens}"
        )
