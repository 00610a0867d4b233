"""The table that the README leads with: quality, speed and memory of one model in each storage, and
llama.cpp beside. Writes benchmarks/results/headline.md and .json.

`make recovery ARGS=--keep` first: it trains the pruned models that are measured here. Then

    python benchmarks/headline.py

Perplexity: 16 windows of 512 tokens of the text that was trained on, held out, and 16 of another
kind, in the model's own dtype and by its own kernels. Decoding: one sequence, greedily, the fastest
way each side has: our rows and dense by a compiled step (`prunekern.Decoder`), ours fused. Each
model lives in a process of its own and all take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import prunekern
from prunekern.compare.default_model import DEFAULT_MODEL, default_model_path, shipped_gguf
from prunekern.compare.measure import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    decode_tokens_per_s,
    negative_log_likelihood,
    peak_rss_bytes,
    perplexity,
    prefill_tokens_per_s,
    reset_peak_rss,
)
from prunekern.compare.variants import model_bytes
from prunekern.hardware import hardware

sys.path.insert(0, str(Path(__file__).resolve().parent))
from recovery import MODELS, Inputs
from rivals import llama_cpp

RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS = 5
TRAINED_24 = "sparsegpt-2of4-all-trained"
TRAINED_50 = "sparsegpt-unstructured-all-trained"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: As printed.
        folder: Of the trained model under MODELS, or "" for the dense parent.
        kernel: What its layers are stored in anew, or "" for what the folder holds.
        compiled: Whether a token is decoded by a compiled step.
        dtype: Of the model.
    """

    name: str
    folder: str = ""
    kernel: str = ""
    compiled: bool = True
    dtype: torch.dtype = torch.bfloat16


ROWS = (
    Row("dense fp32, transformers", compiled=False, dtype=torch.float32),
    Row("dense bf16, transformers", compiled=False),
    Row("dense bf16, compiled"),
    Row("50 % unstructured, recovered", TRAINED_50),
    Row("2:4, recovered", TRAINED_24),
    Row("2:4 int8, recovered", TRAINED_24, "2:4-int8"),
    Row("2:4 int4, recovered", TRAINED_24, "2:4-int4"),
)


@dataclass
class Cell:
    """What one row came to."""

    name: str
    model_bytes: int
    python: float | None = None
    licences: float | None = None
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    peak_rss_bytes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, llama.cpp")
    parser.add_argument("--models", type=Path, default=MODELS, help="what make recovery kept")
    options = parser.parse_args()
    for row in ROWS:
        if row.folder and not (options.models / row.folder).exists():
            parser.error(
                f"{options.models} must hold {row.folder}: make recovery ARGS=--keep trains it"
            )
    torch.set_num_threads(options.threads)
    inputs = Inputs()
    texts = {"python": inputs.held_out, "licences": inputs.licences}
    window = inputs.held_out[:1]
    context = multiprocessing.get_context("spawn")
    workers = [Worker(context, row, options, texts) for row in ROWS]
    cells = [worker.ask("quality") for worker in workers]
    for cell in cells:
        print(cell, flush=True)
    llama = None if llama_cpp.absent() else llama_cpp.Model(shipped_gguf(), options.threads)
    turns = [turn(workers, llama, window) for _ in range(ROUNDS + 1)][1:]  # the first compiles
    if llama:
        cells.append(Cell("llama.cpp, dense Q4_1", llama.facts["file_bytes"]))
        llama.stop()
    for cell, times in zip(cells, zip(*turns, strict=True), strict=True):
        cell.decode_tokens_per_s = statistics.median(t["decode"] for t in times)
        cell.prefill_tokens_per_s = statistics.median(t["prefill"] for t in times)
        cell.peak_rss_bytes = max(t["rss"] for t in times)
    write(cells, options.threads, llama_cpp.absent())


def turn(workers: list[Worker], llama: Any, window: torch.Tensor) -> list[dict[str, float]]:
    """Speeds of each, one after the other."""
    said = [worker.ask("speed") for worker in workers]
    if llama:
        said.append(llama.speed(window[0].tolist(), PROMPT_TOKENS, NEW_TOKENS))
    return said


class Worker:
    """The process of one row."""

    def __init__(self, context: Any, row: Row, options: argparse.Namespace, texts: dict) -> None:
        self._pipe, child = context.Pipe()
        arguments = (child, row, options.models, options.threads, texts)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    def ask(self, what: str) -> Any:
        """Waits for the answer; an exception of the process ends it with its traceback."""
        self._pipe.send(what)
        while not self._pipe.poll(1):
            if not self._process.is_alive():
                raise RuntimeError(f"headline: the process must answer {what}; see its traceback")
        return self._pipe.recv()


def _serve(pipe: Connection, row: Row, models: Path, threads: int, texts: dict) -> None:
    torch.set_num_threads(threads)
    model = load(row, models)
    reset_peak_rss()
    answers: dict[str, Callable[[], Any]] = {
        "quality": lambda: Cell(
            row.name, model_bytes(model), **{k: quality(model, w) for k, w in texts.items()}
        ),
        "speed": lambda: speed(model, row, texts["python"]),
    }
    with contextlib.suppress(EOFError):  # the parent has ended
        while True:
            pipe.send(answers[pipe.recv()]())


def load(row: Row, models: Path) -> nn.Module:
    """The model of a row, its products fused where it is sparse."""
    folder = models / row.folder if row.folder else default_model_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=row.dtype).eval()
    if row.kernel:
        prunekern.restore_linears(model)
        prunekern.replace_linears(model, row.kernel, "all-linear", prune=False)
    if row.folder:
        prunekern.fuse_linears(model)
    return model


def quality(model: nn.Module, windows: torch.Tensor) -> float:
    """Perplexity, one window after the other."""
    return perplexity(sum(negative_log_likelihood(model, w[None]) for w in windows), windows)


def speed(model: nn.Module, row: Row, windows: torch.Tensor) -> dict[str, float]:
    """Tokens a second and memory."""
    return {
        "prefill": prefill_tokens_per_s(model, windows),
        "decode": decode_tokens_per_s(model, windows, 1, row.compiled),
        "rss": peak_rss_bytes(),
    }


def write(cells: list[Cell], threads: int, why_no_llama: str) -> None:
    """The page and its numbers."""
    machine = f"{hardware().cpu}, {threads} threads, torch {torch.__version__}"
    document = {"model": DEFAULT_MODEL, "machine": machine, "rows": [asdict(c) for c in cells]}
    (RESULTS / "headline.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        f"# {DEFAULT_MODEL}: what pruning costs and gains",
        "",
        f"{machine}. All Linears but the head are pruned by SparseGPT and recovered by 127 steps; "
        "see [recovery](recovery.md). Perplexity on held-out text of the kind that was trained on, "
        "and on another kind. Tokens a second: one sequence, medians of "
        f"{ROUNDS} turns, in brackets by dense bf16 of transformers. Memory: weights, and the peak "
        "of the process, torch and transformers included.",
        "",
        "| | Python | licences | decode tok/s | prefill tok/s | weights MB | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    dense = next(c for c in cells if c.name == "dense bf16, transformers")
    for c in cells:
        python, licences = ("" if v is None else f"{v:.4g}" for v in (c.python, c.licences))
        speeds = [
            f"{getattr(c, key):.0f} ({getattr(c, key) / getattr(dense, key):.2f}x)"
            for key in ("decode_tokens_per_s", "prefill_tokens_per_s")
        ]
        lines.append(
            f"| {c.name} | {python} | {licences} | {speeds[0]} | {speeds[1]} | "
            f"{c.model_bytes / 1e6:.0f} | {c.peak_rss_bytes / 1e6:.0f} |"
        )
    if why_no_llama:
        lines += ["", f"llama.cpp: {why_no_llama}"]
    (RESULTS / "headline.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
