"""What pruning takes and recovery gives back: writes benchmarks/results/recovery.md and .json, and
the loss curves as results/recovery.png.

`make recovery`. The default model is pruned in one shot and trained on with its zeros held, and the
dense model is trained as long on the same text, which tells recovery from adaptation to the text.

Text: the topics of Python's help(). Training and calibration (its first 48 windows) use those
before the last 16 windows of 512 tokens, which `prunekern compare` measures on; no paragraph is in
both. So the first column's text is of the kind that was trained on. The second column's is not:
licences of installed packages, 16 windows.

Training: half cross-entropy, half KL to the dense parent, AdamW 1e-4 with a cosine, 127 steps of
2 x 512 tokens, products in bfloat16. One row after the other is written as soon as it is there, and
a second call goes on where the first was stopped: all of them take hours on two cores.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunekern
from prunekern.compare.default_model import DEFAULT_MODEL, default_model_path
from prunekern.compare.measure import negative_log_likelihood, perplexity
from prunekern.compare.text import WINDOW, WINDOWS
from prunekern.recovery import Progress, texts

RESULTS = Path(__file__).resolve().parent / "results"
SCRATCH = Path("results") / "recovery"
MODELS = Path("results") / "recovered"
STEPS, BATCH, CALIBRATION_WINDOWS = 127, 2, 48
QV, ALL = ("q_proj", "v_proj"), "all-linear"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: Of `prunekern.prune`, or "dense".
        pattern: "2:4", "unstructured", or "" for dense.
        targets: What is pruned.
        trained: Whether it is trained afterwards.
    """

    method: str
    pattern: str = ""
    targets: str | tuple[str, ...] = ALL
    trained: bool = False

    @property
    def name(self) -> str:
        """A key in the JSON file, and a folder."""
        where = {QV: "qv", ALL: "all"}[self.targets] if self.pattern else ""
        parts = (self.method, self.pattern.replace(":", "of"), where, "trained" * self.trained)
        return "-".join(part for part in parts if part)


ONE_SHOT = tuple(
    Row(method, pattern, targets)
    for method in ("sparsegpt", "wanda", "magnitude")
    for pattern in ("2:4", "unstructured")
    for targets in (ALL, QV)
)
# The most telling first, as each takes minutes.
ROWS = (
    Row("dense"),
    Row("sparsegpt", "2:4", ALL),
    Row("sparsegpt", "2:4", ALL, trained=True),
    Row("dense", trained=True),
    Row("sparsegpt", "2:4", QV, trained=True),
    Row("sparsegpt", "unstructured", ALL, trained=True),
    *ONE_SHOT[1:],
    Row("magnitude", "2:4", ALL, trained=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--only", help="rows whose name has this in it")
    parser.add_argument(
        "--keep",
        action="store_true",
        help=f"save each trained model, compressed, under {MODELS}; a row without one runs again",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _keep_memory()
    path = RESULTS / "recovery.json"
    table = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    inputs = Inputs()
    for row in ROWS:
        keep = MODELS / row.name if options.keep and row.trained and row.pattern else None
        done = row.name in table["rows"] and (keep is None or keep.exists())
        if done or (options.only and options.only not in row.name):
            continue
        table["rows"][row.name] = inputs.measure(row, keep)
        table["machine"] = f"{platform.machine()}, {options.threads} threads, shared with others"
        table["texts"] = inputs.sizes()
        _write(path, json.dumps(table, indent=1) + "\n")
        _write(path.with_suffix(".md"), markdown(table))
        _plot(table)
        print(row.name, table["rows"][row.name], flush=True)
    shutil.rmtree(SCRATCH, ignore_errors=True)


class Inputs:
    """The dense model and the texts, as tokens."""

    def __init__(self) -> None:
        self.path = default_model_path()
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        documents, self.held_out = texts.python_documentation(tokenizer, WINDOWS, WINDOW)
        self.train = _windows(tokenizer, documents)
        licences = texts.split(texts.licences(), held_out=0.5).held_out
        self.licences = _windows(tokenizer, texts.without_paragraphs_of(licences, documents))
        self.licences = self.licences[:WINDOWS]

    def sizes(self) -> dict[str, int]:
        """Windows of each text."""
        return {name: len(getattr(self, name)) for name in ("train", "held_out", "licences")}

    def measure(self, row: Row, keep: Path | None = None) -> dict[str, Any]:
        """Prunes, trains, measures; saves the model, compressed and in bfloat16, in `keep`."""
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        parent = copy.deepcopy(model).to(torch.bfloat16) if row.trained else None
        prune_minutes = train_minutes = 0.0
        if row.pattern:
            prune_minutes = self._prune(model, row)
        steps = 0
        if row.trained:
            report = prunekern.recover(
                model,
                self.train,
                "fixed" if row.pattern else None,
                steps=STEPS,
                batch=BATCH,
                teacher=parent,
                autocast=torch.bfloat16,
                checkpoint=SCRATCH / row.name,
                save_every=32,
                progress=_say,
            )
            shutil.rmtree(SCRATCH / row.name)
            steps, train_minutes = report.steps, report.seconds / 60
        cell = {
            "python": _perplexity(model, self.held_out),
            "licences": _perplexity(model, self.licences),
            "steps": steps,
            "prune_minutes": prune_minutes,
            "train_minutes": train_minutes,
            "losses": [round(loss.total, 4) for loss in report.losses] if row.trained else [],
        }
        if keep:
            model.to(torch.bfloat16)
            kernel = "2:4" if row.pattern == "2:4" else "bitmask"
            prunekern.replace_linears(model, kernel, row.targets, prune=False)
            prunekern.save_pretrained(model, keep)
            AutoTokenizer.from_pretrained(self.path).save_pretrained(keep)
        return cell

    def _prune(self, model: nn.Module, row: Row) -> float:
        begin = time.monotonic()
        needs = {}
        if row.method != "magnitude":
            # Finished layers are kept, so that a stopped call goes on here as well.
            needs = {"calibration": self.train[:CALIBRATION_WINDOWS], "state": SCRATCH / row.name}
        # A trained row starts from the same weights as its one-shot twin, which were kept.
        one_shot = SCRATCH / f"{Row(row.method, row.pattern, row.targets).name}.pt"
        if one_shot.exists():
            kept = torch.load(one_shot, weights_only=True)
            model.load_state_dict(kept["model"])
            return kept["minutes"]
        prunekern.prune(model, row.pattern, row.method, targets=row.targets, **needs)
        minutes = (time.monotonic() - begin) / 60
        scratch = _made(SCRATCH) / f".{one_shot.name}"
        torch.save({"model": model.state_dict(), "minutes": minutes}, scratch)
        scratch.replace(one_shot)
        return minutes


def markdown(table: dict[str, Any]) -> str:
    """The table, in the order of the question and not of the work."""
    rows, dense, sizes = table["rows"], table["rows"]["dense"], table["texts"]
    order = [Row("dense"), Row("dense", trained=True)]
    for method in ("magnitude", "wanda", "sparsegpt"):
        for pattern in ("2:4", "unstructured"):
            for targets in (QV, ALL):
                order += [Row(method, pattern, targets, trained) for trained in (False, True)]
    lines = [
        f"# Recovery of {DEFAULT_MODEL}",
        "",
        f"Perplexity, float32, windows of {WINDOW} tokens; in brackets by that of dense. Python: "
        f"{sizes['held_out']} held-out windows of the text that was calibrated and trained on "
        f"({sizes['train']} windows of it), so the first column is of their kind. Licences: "
        f"{sizes['licences']} windows of another kind, which nothing was calibrated or trained on. "
        f"{table['machine']}.",
        "",
        "| pruned by | pattern | layers | Python | licences | steps | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in order:
        if row.name not in rows:
            continue
        cell = rows[row.name]
        pattern = {"": "", "2:4": "2:4", "unstructured": "50 %"}[row.pattern]
        where = {QV: "q, v", ALL: "all linear"}[row.targets] if row.pattern else ""
        values = [f"{cell[k]:.4g} ({cell[k] / dense[k]:.2f}x)" for k in ("python", "licences")]
        minutes = f"{cell['prune_minutes'] + cell['train_minutes']:.0f}"
        lines.append(
            f"| {row.method} | {pattern} | {where} | {values[0]} | {values[1]} | "
            f"{cell['steps'] or ''} | {minutes} |"
        )
    return "\n".join(lines) + "\n"


def _plot(table: dict[str, Any]) -> None:
    curves = {name: row["losses"] for name, row in table["rows"].items() if row["losses"]}
    if curves:
        prunekern.recovery.plot_losses(curves, _made(SCRATCH.parent) / "recovery.png")


def _windows(tokenizer: Any, documents: tuple[str, ...]) -> Tensor:
    ids = tokenizer("\n\n".join(documents), return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


def _perplexity(model: nn.Module, windows: Tensor) -> float:
    model.eval()
    return perplexity(sum(negative_log_likelihood(model, w[None]) for w in windows), windows)


def _say(progress: Progress) -> None:
    if progress.step % 8 == 0:
        print(
            f"  step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, "
            f"{progress.seconds_left / 60:.0f} minutes left",
            flush=True,
        )


def _keep_memory() -> None:
    """Makes glibc keep what is freed: else half of a step is the system clearing pages anew."""
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, text: str) -> None:
    scratch = _made(path.parent) / f".{path.name}"
    scratch.write_text(text)
    scratch.replace(path)


if __name__ == "__main__":
    main()
