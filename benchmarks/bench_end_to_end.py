"""A whole model: tokens a second of the default model, ours beside transformers and llama.cpp.

Every Linear but lm_head is pruned, by magnitude: speed alone is asked here, `prunekern compare` has
the quality. Dense and sparse models decode as they are and by a compiled step; the head is sparse
where the name says so. Each model lives in a process of its own, and all take turns. Times are of
512 tokens read at once, and of one token written, for one sequence and for four.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace

import pytest
import torch
from contenders import STEM_KERNEL, is_24
from limits import limits
from rivals import llama_cpp

from prunekern import ops
from prunekern.compare.default_model import DEFAULT_MODEL, default_model_path, shipped_gguf
from prunekern.compare.measure import NEW_TOKENS, PREFILL_TOKENS, PROMPT_TOKENS
from prunekern.compare.text import default_text, token_windows
from prunekern.compare.variants import DENSE, Variant
from prunekern.compare.worker import Job, Worker

ROUNDS = 3
TARGETS = "all-linear"
HEADED = ("all-linear", "lm_head")
SPEEDS = {  # What a worker says, and how many tokens one time is of.
    f"prefill of {PREFILL_TOKENS}": ("prefill_tokens_per_s", PREFILL_TOKENS),
    "decode": ("decode_tokens_per_s", 1),
    "decode of 4 sequences": ("decode_tokens_per_s_batch4", 4),
}


def contestants() -> list[tuple[Variant, str | tuple[str, ...]]]:
    """(variant, targets): dense in fp32 and bf16 by transformers alone, and what we store in bf16.

    Fused and compiled are those of 2:4 in every precision, and compiled the dense rival, too.
    """
    dense = [Variant(DENSE, DENSE, dtype, 0.0) for dtype in ("float32", "bfloat16")]
    stored = [
        Variant("2:4" if is_24(kernel) else "unstructured", kernel, "bfloat16", 0.5)
        for stem, kernel in STEM_KERNEL.items()
        if ops.default_layout(stem, torch.device("cpu"), torch.bfloat16) != "reference"
    ]
    fast = [replace(v, fused=True, compiled=True) for v in stored if v.pattern == "2:4"]
    rows = [*dense, replace(dense[1], compiled=True), *stored, *fast]
    return [(row, TARGETS) for row in rows] + [(row, HEADED) for row in fast]


def test_end_to_end(benchmark, keep, device):
    if device != "cpu":
        pytest.skip("compare runs models on the CPU")
    keep.once(f"{DEFAULT_MODEL} {next(iter(SPEEDS))}")
    from transformers import AutoTokenizer

    folder = str(default_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    windows = token_windows(tokenizer, default_text(), windows=1)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        workers = [
            Worker(Job(folder, variant, targets, threads, windows, None, scratch))
            for variant, targets in contestants()
        ]
        llama = None
        try:
            facts = [worker.ask("load") for worker in workers]
            llama = None if llama_cpp.absent() else llama_cpp.Model(shipped_gguf(), threads)
            said = [[] for _ in workers]
            of_llama = []

            def take_turns():
                for worker, answers in zip(workers, said, strict=True):
                    answers.append(worker.ask("speed"))
                if llama:
                    tokens = windows[0].tolist()
                    of_llama.append(llama.speed(tokens, PROMPT_TOKENS, NEW_TOKENS))

            take_turns()  # warms up
            for answers in (*said, of_llama):
                answers.clear()
            benchmark.pedantic(take_turns, rounds=ROUNDS)
        finally:
            for process in [*workers, *([llama] if llama else [])]:
                process.stop()
    for what, (key, tokens) in SPEEDS.items():
        results = [
            _result(variant, targets, fact, [tokens / a[key] for a in answers])
            for (variant, targets), fact, answers in zip(contestants(), facts, said, strict=True)
        ]
        short = "prefill" if "prefill" in what else "decode"
        if of_llama and "sequences" not in what:
            times = [tokens / a[short] for a in of_llama]
            results.append(_row("llama.cpp Q4_1", False, times, llama.facts["file_bytes"], None))
        found = judge(results, f"{DEFAULT_MODEL} {what}")
        keep(found)
        benchmark.extra_info[what] = found


def _result(
    variant: Variant, targets: str | tuple[str, ...], fact: dict, times: list[float]
) -> dict:
    nbytes = fact["model_weight_bytes"]
    share = nbytes / limits().bytes_per_s / statistics.median(times)
    if targets == HEADED:
        share = None  # the embedding, which stays dense beside the head, is not read
    name = (
        variant.name.replace("dense", "transformers")
        if variant.pattern == DENSE
        else (variant.name + ", head too" * (targets == HEADED))
    )
    return _row(name, variant.pattern != DENSE, times, nbytes, share)


def _row(name: str, is_ours: bool, times: list[float], nbytes: int, share: float | None) -> dict:
    return {
        "name": name, "is_ours": is_ours, "ms": statistics.median(times) * 1e3,
        "low_ms": min(times) * 1e3, "high_ms": max(times) * 1e3, "rounds": len(times),
        "weight_bytes": nbytes, "share_of_limit": share if is_ours else None,
    }  # fmt: skip


def judge(results: list[dict], what: str) -> dict:
    """A cell as races have them."""
    best = min((r for r in results if r["is_ours"]), key=lambda r: r["ms"])
    rival = min((r for r in results if not r["is_ours"]), key=lambda r: r["ms"])
    return {
        "cell": what, "results": results, "best": best["name"], "rival": rival["name"],
        "ratio": rival["ms"] / best["ms"],
    }  # fmt: skip
