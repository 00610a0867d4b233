"""What does it cost to get there? Compressing, packing and back, and loading a checkpoint.

A layer of 4096 x 4096 in bf16, and the default model. Rivals' own ways of making a sparse weight or
a packed one stand beside compress and pack.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from contenders import STEM_KERNEL, absent_rivals, best_layout, is_24, rivals_for, weight_of
from rivals import RIVALS

import prunekern
from prunekern.compare.default_model import default_model_path

SHAPE = (4096, 4096)
ROUNDS = 5


def _times(benchmark, steps) -> dict[str, float]:
    """Step -> median milliseconds; each takes what the one before it returned."""
    times = {name: [] for name in steps}

    def all_steps():
        value = None
        for name, step in steps.items():
            start = time.perf_counter()
            value = step(value)
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(all_steps, rounds=ROUNDS, warmup_rounds=1)
    return {name: statistics.median(t[1:]) * 1e3 for name, t in times.items()}


def _add(keep, benchmark, what: str, times: dict[str, float], is_ours: bool, nbytes: int) -> None:
    found = {"cell": what, "is_ours": is_ours, "times_ms": times, "weight_bytes": nbytes}
    benchmark.extra_info.update(found)
    keep(found)


@pytest.mark.parametrize("stem", STEM_KERNEL)
def test_convert_layer(benchmark, keep, isa, device, stem):
    kernel = STEM_KERNEL[stem]
    layout = best_layout(stem, torch.bfloat16, isa, device)
    keep.once(f"{kernel}/{layout}")
    weight = weight_of(SHAPE, 0.5 if is_24(kernel) else 0.7).to(device, torch.bfloat16)
    packed = prunekern.pack(prunekern.compress(weight, kernel), layout)
    steps = {
        "compress": lambda _: prunekern.compress(weight, kernel),
        "pack": lambda canonical: prunekern.pack(canonical, layout),
        "unpack": prunekern.unpack,
        "decompress": prunekern.decompress,
    }
    _add(keep, benchmark, f"{kernel}/{layout}", _times(benchmark, steps), True, packed.nbytes)


@pytest.mark.parametrize("rival", RIVALS)
def test_convert_rival(benchmark, keep, isa, device, rival):
    found = RIVALS[rival]
    if found.device != device:
        pytest.skip(f"runs on {found.device}")
    keep.once(rival)
    if rival not in rivals_for(device, {found.weights}, isa):
        pytest.skip(absent_rivals(device, isa)[rival])
    weight = weight_of(SHAPE, 0.5 if found.storage == "2:4" else 0.7).to(device)
    x = torch.randn(1, SHAPE[1]).to(device, found.dtype)
    product = found.build(weight, 1)

    def first_call(product):
        product.call(x)

    steps = {"compress and pack": lambda _: found.build(weight, 1), "first call": first_call}
    _add(keep, benchmark, rival, _times(benchmark, steps), False, product.nbytes)


@pytest.mark.parametrize("kernel", ["dense", *STEM_KERNEL.values()])
def test_convert_checkpoint(benchmark, keep, tmp_path, kernel):
    from transformers import AutoModelForCausalLM

    keep.once(f"{kernel} checkpoint")
    model = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=torch.bfloat16)
    if kernel == "dense":
        model.save_pretrained(tmp_path)
    else:
        pattern, sparsity = ("2:4", None) if is_24(kernel) else ("unstructured", 0.7)
        prunekern.prune(model, pattern, sparsity=sparsity, targets="all-linear")
        prunekern.replace_linears(model, kernel=kernel, targets="all-linear")
        prunekern.save_pretrained(model, tmp_path)
    nbytes = (tmp_path / "model.safetensors").stat().st_size
    load = {"load": lambda _: AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)}
    _add(
        keep, benchmark, f"{kernel} checkpoint", _times(benchmark, load), kernel != "dense", nbytes
    )
