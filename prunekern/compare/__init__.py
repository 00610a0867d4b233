"""compare: speed, memory and quality of 2:4, unstructured and dense, measured here and now."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import types
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from prunekern import ops
from prunekern.compare import measure
from prunekern.compare.report import CompareResult
from prunekern.compare.sensitivity import Pruning, prunings_of
from prunekern.compare.sweep import measure_sweep
from prunekern.compare.text import calibration_windows, read_text, token_windows
from prunekern.compare.variants import DENSE, Variant, variants_for
from prunekern.compare.worker import Job, Worker, check_targets
from prunekern.hardware import hardware
from prunekern.structured.model import check_family
from prunekern.targets import DEFAULT_TARGETS

__all__ = ["CompareResult", "compare"]

PATTERNS = ("unstructured", "2:4")
COMPARED_DTYPES = ("float32", "bfloat16")
ROUNDS = 3
# What is measured besides the rows: nothing; the layer against tokens and the error of each layer;
# how far each layer alone moves the predictions as well.
REPORTS = ("rows", "standard", "full")


def compare(
    model: str | Path | nn.Module | None = None,
    tokenizer: Any = None,
    *,
    targets: Sequence[str] | str = DEFAULT_TARGETS,
    sparsity: float = 0.5,
    patterns: Sequence[str] = PATTERNS,
    dtype: Sequence[str] | str = COMPARED_DTYPES,
    threads: int | None = None,
    text: str | Path | None = None,
    out: str | Path = "results",
    rounds: int = ROUNDS,
    structured: float = 0.0,
    fuse: bool = False,
    compiled: bool = False,
    report: str = "standard",
) -> CompareResult:
    """Prunes a model in several ways and measures each: the main job of this package.

    Every variant lives in a process of its own, so that its memory is its own. Speeds are medians
    over rounds in which all variants take their turn; ratios are medians of the ratios within a
    round. Perplexity is measured once for weights that several variants store, and the others are
    checked against it on one window.

    Args:
        model: A folder, a hub name, a transformers model, or None for the default model.
        tokenizer: Needed with a model object; otherwise read from the same place.
        targets: Layers to prune, see `prunekern.targets.match_modules`.
        sparsity: Of unstructured patterns, in [0, 1).
        patterns: "unstructured" and "N:M".
        dtype: One or more of float32, bfloat16, float16.
        threads: Of torch; as many as it takes by itself by default.
        text: File to measure perplexity on, Python's own documentation by default.
        out: Folder for compare.json, compare.md and compare.html.
        rounds: Of speed measurements.
        structured: Share of heads and of MLP channels that are really removed, each in a row of its
            own: by activation and refitted, on the first windows of the text. In [0, 1); 0 for no
            such rows.
        fuse: Whether rows that we store multiply q, k, v and gate, up at once.
        compiled: Whether all rows, dense ones too, decode by a compiled step, which is compiled
            before it is timed: a minute or two more for each row.
        report: "rows" measures no more than the rows of the tables; "standard" also a layer at 1 to
            512 tokens and the error that pruning makes in each layer, less than a minute for a
            small model; "full" also how far each layer alone moves the predictions, a pass each.

    Returns:
        Rows, sweep, sensitivity, environment and verdict, as written.

    Raises:
        ValueError: An argument that is not one of the above; nothing was written.
    """
    console = Console(stderr=True)
    dtypes = [dtype] if isinstance(dtype, str) else list(dtype)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    variants = variants_for(patterns, sparsity, dtypes, structured, fuse, compiled)
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1 or rounds < 1:
        raise ValueError(f"compare: threads and rounds must be at least 1, got {threads}, {rounds}")
    if report not in REPORTS:
        raise ValueError(f"compare: report must be one of {', '.join(REPORTS)}, got {report!r}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(dir=out, prefix=".compare-") as scratch:
        folder, name = _model_folder(model, tokenizer, Path(scratch), console)
        loaded_tokenizer = _check_model(folder, targets, structured > 0)
        words = read_text(text)
        windows = token_windows(loaded_tokenizer, words)
        calibration = calibration_windows(loaded_tokenizer, words) if structured else None
        targets = targets if isinstance(targets, str) else tuple(targets)
        jobs = [Job(folder, v, targets, threads, windows, calibration, scratch) for v in variants]
        prunings = [] if report == "rows" else prunings_of(patterns, sparsity)
        rows, sensitivity = _measure(jobs, windows, rounds, prunings, report == "full", console)
        sweep = None
        if report != "rows":
            with console.status(f"layer of {rows[0]['commonest_shape']} at 1 to 512 tokens"):
                sweep = _sweep(rows[0]["commonest_shape"], patterns, dtypes, threads)
    environment = _environment(name, threads, windows, text, rounds)
    if calibration is not None:
        environment["calibration_windows"] = len(calibration)
    result = CompareResult(rows, environment, sweep, sensitivity)
    result.write(out)
    return result


def _model_folder(
    model: str | Path | nn.Module | None, tokenizer: Any, scratch: Path, console: Console
) -> tuple[str, str]:
    """Where workers load the model from, and its name for the report."""
    if model is None:
        from prunekern.compare.default_model import DEFAULT_MODEL, default_model_path

        with console.status(f"preparing {DEFAULT_MODEL}"):
            return str(default_model_path()), DEFAULT_MODEL
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ValueError("compare: tokenizer must be given with a model object, got None")
        model.save_pretrained(scratch / "model")
        tokenizer.save_pretrained(scratch / "model")
        return str(scratch / "model"), type(model).__name__
    return str(model), str(model)


def _check_model(folder: str, targets: Sequence[str] | str, structured: bool) -> Any:
    """The tokenizer; refuses a model that is not there or not of use, and unmatched targets."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            "compare: model must be a folder or hub name with a causal language model and its "
            f"tokenizer, got {folder}: {first_line}"
        ) from None
    check_targets(skeleton, targets)
    if structured:
        check_family(skeleton, "compare")
    return tokenizer


def _measure(
    jobs: list[Job],
    windows: Tensor,
    rounds: int,
    prunings: list[Pruning],
    full: bool,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The rows, and how each layer bears the prunings, or None where there are none."""
    together = _fit_together(jobs[0].folder, len(jobs))
    groups = [jobs] if together else [[job] for job in jobs]
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    rows: dict[Variant, dict[str, Any]] = {}
    sensitivity = None
    with Progress(*columns, console=console) as progress:
        load = progress.add_task("load, prune, compress", total=len(jobs))
        speed = progress.add_task("speed and memory", total=len(jobs) * rounds)
        quality = progress.add_task("perplexity", total=len(jobs))
        for group in groups:
            workers = []
            try:
                # Two at a time: pruning and compressing run on one core each.
                for first in range(0, len(group), 2):
                    pair = group[first : first + 2]
                    loading = [Worker(job) for job in pair]
                    workers += loading
                    for worker in loading:
                        worker.tell("load")
                    for worker in loading:
                        progress.update(load, description=f"load  {worker.variant.name}")
                        rows[worker.variant] = {"loaded": worker.answer(), "rounds": []}
                        progress.advance(load)
                for worker in workers * rounds:
                    progress.update(speed, description=f"speed  {worker.variant.name}")
                    rows[worker.variant]["rounds"].append(worker.ask("speed"))
                    progress.advance(speed)
                for worker in workers:
                    progress.update(quality, description=f"perplexity  {worker.variant.name}")
                    rows[worker.variant]["nll"] = _nll(worker, rows, windows)
                    progress.advance(quality)
                if workers and workers[0].variant is jobs[0].variant and prunings:
                    sensitivity = _sensitivity(workers[0], prunings, full, windows, progress)
            finally:
                for worker in workers:
                    worker.stop()
    return [_row(job, rows, windows) for job in jobs], sensitivity


def _sensitivity(
    worker: Worker, prunings: list[Pruning], full: bool, windows: Tensor, progress: Progress
) -> dict[str, Any]:
    """What `sensitivity.py` measures, by the worker that has the dense model."""
    task = progress.add_task("error of each layer", total=1)
    layers = worker.ask("errors", prunings)
    progress.advance(task)
    if full:
        task = progress.add_task("divergence by layer", total=len(layers) * len(prunings))
        for layer in layers:
            layer["divergence"] = {}
            for pruning in prunings:
                progress.update(task, description=f"divergence  {layer['name']}")
                moved = worker.ask("divergence", layer["name"], pruning)
                layer["divergence"][pruning.label] = moved
                progress.advance(task)
    return {
        "dtype": worker.variant.dtype,
        "text_tokens": windows.shape[1],
        "prunings": [pruning.label for pruning in prunings],
        "layers": layers,
    }


def _sweep(
    shape: tuple[int, int], patterns: Sequence[str], dtypes: Sequence[str], threads: int
) -> dict[str, Any]:
    """The sweep in a process of its own: this one's threads stay as they are."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure_sweep, shape, patterns, dtypes, threads).result()


def _fit_together(folder: str, count: int) -> bool:
    """Whether all variants fit into half of the free memory at once."""
    size = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))
    return 0 < count * (size + 2**29) < psutil.virtual_memory().available / 2


def _nll(worker: Worker, rows: dict[Variant, dict[str, Any]], windows: Tensor) -> dict[str, Any]:
    """Negative log likelihood in total, or that of a twin if both agree on the first window."""
    first = worker.ask("nll", 0, 1)
    for other, row in rows.items():
        twin = row.get("nll")
        same_weights = other.weights_key == worker.variant.weights_key
        if twin and same_weights and abs(twin["first"] - first) <= 2e-3 * first:
            return {**twin, "source": other.name}
    total = first
    step = 4
    for i in range(1, len(windows), step):
        total += worker.ask("nll", i, step)
    return {"first": first, "total": total, "source": worker.variant.name}


def _row(job: Job, rows: dict[Variant, dict[str, Any]], windows: Tensor) -> dict[str, Any]:
    variant = job.variant
    mine = rows[variant]
    dense = next(r for v, r in rows.items() if v.pattern == DENSE and v.dtype == variant.dtype)
    first = next(iter(rows.values()))  # dense in the first dtype
    speeds = ("prefill_tokens_per_s", "decode_tokens_per_s", "decode_tokens_per_s_batch4")

    def median(pick) -> float:
        return statistics.median(pick(r) for r in mine["rounds"])

    def ratio(key: str, base: dict[str, Any]) -> float:
        pairs = zip(mine["rounds"], base["rounds"], strict=True)
        return statistics.median(r[key] / b[key] for r, b in pairs)

    def layer_ratio(tokens: int) -> float:
        pairs = zip(mine["rounds"], dense["rounds"], strict=True)
        return statistics.median(b["layer_ms"][tokens] / r["layer_ms"][tokens] for r, b in pairs)

    tokens = mine["rounds"][0]["layer_ms"]
    return {
        "variant": variant.name,
        "pattern": variant.pattern,
        "storage": variant.storage,
        "targets": job.targets if isinstance(job.targets, str) else list(job.targets),
        "dtype": variant.dtype,
        **mine["loaded"],
        "perplexity": measure.perplexity(mine["nll"]["total"], windows),
        "perplexity_measured_on": mine["nll"]["source"],
        "peak_rss_bytes": max(r["peak_rss_bytes"] for r in mine["rounds"]),
        **{key: median(lambda r, key=key: r[key]) for key in speeds},
        "layer_ms": {str(t): median(lambda r, t=t: r["layer_ms"][t]) for t in tokens},
        "ratio_to_dense": {
            **{key: ratio(key, dense) for key in speeds},
            **{f"layer_m{t}": layer_ratio(t) for t in tokens},
            "pruned_weight_bytes": mine["loaded"]["pruned_weight_bytes"]
            / mine["loaded"]["dense_weight_bytes"],
            "model_weight_bytes": mine["loaded"]["model_weight_bytes"]
            / dense["loaded"]["model_weight_bytes"],
        },
        "ratio_to_first_dense": {key: ratio(key, first) for key in speeds},
    }


def _environment(
    model: str, threads: int, windows: Tensor, text: str | Path | None, rounds: int
) -> dict[str, Any]:
    import transformers

    import prunekern

    machine = hardware()
    return {
        "model": model,
        "text": str(text) if text else "pydoc_data.topics, sorted by key",
        "windows": len(windows),
        "window_tokens": windows.shape[1],
        "rounds": rounds,
        "cpu": machine.cpu,
        "isa": sorted(ops.cpu_isa()),
        "cores": machine.cores,
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prunekern": prunekern.__version__,
        "openmp": os.environ.get("OMP_WAIT_POLICY", "default"),
    }


class _CallableModule(types.ModuleType):
    """prunekern.compare is this package and, as users call it, its function too."""

    def __call__(self, *args: Any, **kwargs: Any) -> CompareResult:
        return compare(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
