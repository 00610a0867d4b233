"""Measurements of one model in its own process: quality, speed, memory, file size."""

from __future__ import annotations

import ctypes
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekern.decode import Decoder

PREFILL_TOKENS = 512
PROMPT_TOKENS = 32
NEW_TOKENS = 16
LAYER_TOKENS = (1, 16, 128)


@torch.inference_mode()
def negative_log_likelihood(model: nn.Module, windows: Tensor) -> float:
    """Sum over all tokens but the first of each window, in nats.

    Args:
        model: A causal language model of transformers.
        windows: int64 [count, size].
    """
    logits = model(windows, use_cache=False).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum"
    )
    return loss.item()


def perplexity(nll: float, windows: Tensor) -> float:
    """Exp of the mean negative log likelihood of the predicted tokens."""
    mean = nll / (windows.shape[0] * (windows.shape[1] - 1))
    return math.exp(mean) if mean < 700 else math.inf


@torch.inference_mode()
def prefill_tokens_per_s(model: nn.Module, windows: Tensor) -> float:
    """Speed of reading a prompt of 512 tokens: cache filled, logits of the last token."""
    prompt = windows[:1, :PREFILL_TOKENS]
    start = time.perf_counter()
    model(prompt, use_cache=True, logits_to_keep=1)
    return prompt.shape[1] / (time.perf_counter() - start)


@torch.inference_mode()
def decode_tokens_per_s(
    model: nn.Module, windows: Tensor, batch: int, compiled: bool = False
) -> float:
    """Speed of writing greedily, all sequences together, without the prompt's time.

    With `compiled` by `prunekern.Decoder`, without the time of compiling.
    """
    prompt = windows[:1, :PROMPT_TOKENS].expand(batch, -1)
    if compiled:
        # One token is the prompt's, and one may be of the step that compiles.
        made = Decoder(model).generate(prompt, NEW_TOKENS + 2, eos=())
        return batch / statistics.median(made.step_seconds)
    out = model(prompt, use_cache=True, logits_to_keep=1)
    times = []
    for _ in range(NEW_TOKENS):
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


@torch.inference_mode()
def layer_ms(layer: nn.Module, in_features: int, dtype: torch.dtype) -> dict[int, float]:
    """Tokens -> milliseconds of one layer, its weight warm in cache if it fits there."""
    result = {}
    for tokens in LAYER_TOKENS:
        x = torch.randn(tokens, in_features).to(dtype)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - start)
        result[tokens] = statistics.median(times) * 1e3
    return result


def file_bytes(model: nn.Module, folder: Path) -> int:
    """Size of the model's safetensors file, written and removed again."""
    from safetensors.torch import save_file

    seen: dict[tuple, str] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        # Tied tensors are stored once, as transformers does.
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and seen.setdefault(key, name) != name:
            continue
        state[name] = tensor.contiguous()
    for name, module in model.named_modules():
        csr = getattr(module, "csr", None)
        if isinstance(csr, Tensor):
            parts = (csr.crow_indices(), csr.col_indices(), csr.values())
            state |= {f"{name}.{i}": part.contiguous() for i, part in enumerate(parts)}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "model.safetensors"
        save_file(state, path)
        return path.stat().st_size


def reset_peak_rss() -> None:
    """Forgets what loading and converting took: from here on the peak is that of running."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass  # not Linux: the peak then includes the conversion


def peak_rss_bytes() -> int:
    """Highest resident memory of this process since `reset_peak_rss`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
