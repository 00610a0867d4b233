"""One step of training of one layer: dense with its zeros held, and 2:4 as `trainable=True` has it.

    python benchmarks/training.py          a few minutes; prints a table

A step is forward, backward to x and to the weight, AdamW. "Held" is what `recover(method="fixed")`
does: a dense product, masked gradients, masks applied again. "Both ways" is 2:4 with W^T 2:4, too,
"one way" has dL/dx by a dense product. Variants take turns; times are medians in ms, ratios those
of medians, on one thread in processor time, which other work on the machine disturbs least.
Products are in float32, or in bfloat16 under autocast with float32 values.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunekern.pruning.masks import nm_mask, transposable_mask
from prunekern.training import TrainableSparseLinear

SHAPES = ((576, 576), (1536, 576), (4096, 4096), (11008, 4096))
VARIANTS = ("held", "one way", "both ways")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row of the table")
    parser.add_argument("--shape", help="one of the rows, as 4096x4096")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| W | products | held, ms | one way | both ways | of which forward | dL/dx | dL/dW |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for N, K in SHAPES:
        if options.shape not in (None, f"{N}x{K}"):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            print(row(N, K, dtype, options.tokens, options.seconds), flush=True)


def row(N: int, K: int, dtype: torch.dtype, tokens: int, seconds: float) -> str:
    steps, parts = variants(N, K, dtype, tokens), products(N, K, dtype, tokens)
    times = medians({**steps, **parts}, seconds)
    held = times["held"]
    gains = [f"{held / times[name]:.2f}x" for name in VARIANTS[1:]]
    gains += [f"{times[f'dense {p}'] / times[f'sparse {p}']:.2f}x" for p in ("y", "dx", "dw")]
    name = "float32" if dtype == torch.float32 else "bfloat16"
    return f"| {N} x {K} | {name} | {1e3 * held:.1f} | " + " | ".join(gains) + " |"


def variants(N: int, K: int, dtype: torch.dtype, tokens: int) -> dict[str, Callable[[], None]]:
    """Name -> one step."""
    weight = torch.randn(N, K) / K**0.5
    masks = {"one way": nm_mask(weight.abs(), 2, 4), "both ways": transposable_mask(weight.abs())}
    dense = nn.Linear(K, N, bias=False)
    dense.weight.data = weight.masked_fill(~masks["one way"], 0.0)
    gone = ~masks["one way"]

    def drop(parameter: Tensor) -> None:
        parameter.grad.masked_fill_(gone, 0.0)

    dense.weight.register_post_accumulate_grad_hook(drop)
    layers = {"held": dense}
    for name, mask in masks.items():
        linear = nn.Linear(K, N, bias=False)
        linear.weight.data = weight.masked_fill(~mask, 0.0)
        layers[name] = TrainableSparseLinear.from_linear(linear, "2:4", prune=False)
    x, grad = torch.randn(tokens, K, requires_grad=True), torch.randn(tokens, N)

    def step(layer: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-5, fused=True)

        def run() -> None:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                y = layer(x)
            y.backward(grad.to(y.dtype))
            optimizer.step()
            optimizer.zero_grad()
            x.grad = None
            if layer is dense:
                with torch.no_grad():
                    layer.weight.masked_fill_(gone, 0.0)

        return run

    return {name: step(layer) for name, layer in layers.items()}


def products(N: int, K: int, dtype: torch.dtype, tokens: int) -> dict[str, Callable[[], Tensor]]:
    """Each of the three products alone, conversions of 2:4 included."""
    weight = torch.randn(N, K)
    mask = transposable_mask(weight.abs())
    layer = nn.Linear(K, N, bias=False)
    layer.weight.data = weight.masked_fill(~mask, 0.0)
    sparse = TrainableSparseLinear.from_linear(layer, "2:4", prune=False)
    x, grad = torch.randn(tokens, K).to(dtype), torch.randn(tokens, N).to(dtype)
    W = layer.weight.detach()
    held = (sparse.values.detach(), [sparse.meta], "2:4", "", [N, K])
    ops = torch.ops.prunekern
    return {
        "dense y": lambda: x @ W.to(dtype).t(),
        "sparse y": lambda: ops.trainable_linear(x, *held, None),
        "dense dx": lambda: grad @ W.to(dtype),
        "sparse dx": lambda: ops.trainable_linear_grad_x(grad, *held, True),
        "dense dw": lambda: (grad.t() @ x).float(),
        "sparse dw": lambda: ops.trainable_linear_grad_values(grad, x, *held),
    }


def medians(calls: dict[str, Callable], seconds: float) -> dict[str, float]:
    """Seconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["held"]) < 3:
        for name, call in calls.items():
            begin = clock()
            call()
            times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
