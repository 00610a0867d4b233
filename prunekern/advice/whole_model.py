"""The whole model: its perplexity, its time for so many tokens at once, its bytes."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekern.compare import measure
from prunekern.replace import set_module
from prunekern.timing import FEW_TOKENS

PROMPT_TOKENS = 32  # of each sequence that then writes a token
_TURNS = {True: 16, False: 3}  # few tokens or not -> turns, the first of which warms up

Step = Callable[[], None]


def loss(model: nn.Module, windows: Tensor) -> float:
    """Mean negative log likelihood, nats a token."""
    device = next(model.parameters()).device
    total = sum(measure.negative_log_likelihood(model, w[None].to(device)) for w in windows)
    return total / (windows.shape[0] * (windows.shape[1] - 1))


@contextlib.contextmanager
def restoring(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Afterwards the weights of these layers are what they were."""
    weights = {name: model.get_submodule(name).weight for name in names}
    dense = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(dense[name])


@contextlib.contextmanager
def swapped(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """While inside, the model has these modules in the places of its own."""
    own = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            set_module(model, name, module)
        yield
    finally:
        for name, module in own.items():
            set_module(model, name, module)


def seconds(
    model: nn.Module, windows: Tensor, batches: Sequence[int], modules: Mapping[str, nn.Module]
) -> dict[int, tuple[float, float]]:
    """Tokens at once -> seconds of the model, and of the same with `modules` swapped in.

    Few tokens are as many sequences that write one each; more are one prompt that is read. The two
    take turns. The first time is that of its best turn, as for layers; the second is the first one
    divided by the median of their ratios.
    """
    found = {}
    for tokens in batches:
        few = tokens <= FEW_TOKENS
        dense = _step(model, windows, tokens)
        with swapped(model, modules):
            planned = _step(model, windows, tokens)
        times, ratios = [], []
        for _ in range(_TURNS[few]):
            times.append(_timed(dense))
            with swapped(model, modules):
                ratios.append(times[-1] / _timed(planned))
        best = min(times)
        found[tokens] = best, best / statistics.median(ratios[1:])
    return found


def model_bytes(model: nn.Module) -> int:
    """Of all weights, each tensor once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@torch.inference_mode()
def _step(model: nn.Module, windows: Tensor, tokens: int) -> Step:
    """What is timed: one forward pass for so many tokens."""
    device = next(model.parameters()).device
    if tokens > FEW_TOKENS:
        size = windows.shape[1]
        rows = windows.repeat(-(-tokens // windows.numel()), 1).flatten()
        count = max(tokens // size, 1)
        prompt = (
            rows[:tokens].view(1, -1) if tokens <= size else rows[: count * size].view(-1, size)
        )
        prompt = prompt.to(device)
        return lambda: model(prompt, use_cache=True, logits_to_keep=1)
    prompt = windows[:1, : min(PROMPT_TOKENS, windows.shape[1] // 2)].expand(tokens, -1).to(device)
    cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = prompt[:, -1:]
    return lambda: model(token, past_key_values=cache, use_cache=True)


@torch.inference_mode()
def _timed(step: Step) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers: how a cache is named
        return _seconds(step)


def _seconds(step: Step) -> float:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
