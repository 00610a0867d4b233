"""What rounding costs: writes benchmarks/results/quantized.json and .md.

Perplexity of the default model, every Linear but lm_head, in bfloat16: dense, and 2:4 by SparseGPT,
each as it is and rounded to int8 and int4. A folder of a 2:4 model that was trained on, given by
--recovered, is rounded, too. Texts: as benchmarks/recovery.py has them; calibrated on the first 48
windows of the one kind, measured on windows of both.

A second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from recovery import CALIBRATION_WINDOWS, Inputs, _perplexity, _write
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import prunekern
from prunekern import formats
from prunekern.formats.quantized import find_scales, round_to
from prunekern.targets import match_modules

PATH = Path(__file__).resolve().parent / "results" / "quantized.json"
GROUPS = (-1, 128, 64, 32)
ROUNDED = [(8, -1), (8, 128), *((4, group) for group in GROUPS)]


def round_dense(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """A dense weight [N, K] by the same search of scales, and back."""
    N, K = weight.shape
    size = K if group_size == -1 else group_size
    groups = nn.functional.pad(weight.float(), (0, -K % size)).view(N, -1, size)
    scales = find_scales(groups, bits, weight.dtype).float()
    return (round_to(groups, scales, bits) * scales[..., None]).view(N, -1)[:, :K].to(weight.dtype)


def round_24(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """A 2:4 weight through its format, and back."""
    return formats.decompress(formats.compress(weight, f"2:4-int{bits}", group_size))


def bits_a_weight(kind: str, bits: int | None, group_size: int | None) -> float:
    """Of a long row, scales of 16 bits counted."""
    scales = 16 / group_size if group_size and group_size > 0 else 0.0
    return (bits or 16) * (0.5 if kind == "2:4" else 1.0) + (1.0 if kind == "2:4" else 0) + scales


class Models:
    """Measures one model after the other; the pruned ones are kept in a folder."""

    def __init__(self, scratch: Path, recovered: Path | None) -> None:
        self.inputs = Inputs()
        self.scratch, self.recovered = scratch, recovered
        self.table = json.loads(PATH.read_text()) if PATH.exists() else {}

    def dense(self) -> nn.Module:
        """As it comes."""
        return AutoModelForCausalLM.from_pretrained(self.inputs.path, dtype=torch.bfloat16)

    def pruned(self, **options: Any) -> nn.Module:
        """By SparseGPT; kept as a state dict."""
        model = self.dense()
        path = self.scratch / f"{'-'.join(map(str, options.values())) or 'plain'}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path))
            return model
        prunekern.prune(
            model,
            "2:4",
            "sparsegpt",
            targets="all-linear",
            calibration=self.inputs.train[:CALIBRATION_WINDOWS],
            **options,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        return model

    def trained(self) -> nn.Module:
        """2:4 that was trained on."""
        model = AutoModelForCausalLM.from_pretrained(self.recovered, dtype=torch.bfloat16)
        prunekern.restore_linears(model)
        return model

    def row(self, name: str, kind: str, make, round_weight=None, bits=None, group_size=None):
        """Measures a row unless it is there."""
        if name in self.table:
            return
        model = make()
        if round_weight:
            for module in match_modules(model, "all-linear", "quantized").values():
                rounded = round_weight(module.weight.detach(), bits, group_size)
                module.weight = nn.Parameter(rounded, requires_grad=False)
        self.table[name] = {
            "bits": bits_a_weight(kind, bits, group_size),
            "python": _perplexity(model, self.inputs.held_out),
            "licences": _perplexity(model, self.inputs.licences),
        }
        print(name, self.table[name], flush=True)
        _write(PATH, json.dumps(self.table, indent=1) + "\n")
        _write(PATH.with_suffix(".md"), self.markdown())

    def markdown(self) -> str:
        """The table."""
        lines = [
            "# Rounding: 2:4 and dense, int8 and int4",
            "",
            "Perplexity of the default model in bfloat16, every Linear but lm_head; windows of 512",
            f"tokens, {len(self.inputs.held_out)} of the kind that was calibrated on (Python) and "
            f"{len(self.inputs.licences)} of another (licences).",
            "Bits are those of a weight in a long row, metadata and 16-bit scales counted.",
            "",
            "| weights | bits | Python | licences |",
            "|---|---|---|---|",
        ]
        for name, row in self.table.items():
            lines.append(
                f"| {name} | {row['bits']:.3g} | {row['python']:.4g} | {row['licences']:.4g} |"
            )
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recovered", type=Path, help="folder of a trained 2:4 model")
    parser.add_argument("--scratch", type=Path, default=Path("results/quantized"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    models = Models(options.scratch, options.recovered)

    def rounded(kind: str, of: str, make, round_weight) -> None:
        models.row(of, kind, make)
        for bits, group in ROUNDED:
            scale = "a scale a row" if group == -1 else f"groups of {group}"
            models.row(f"{of}, int{bits}, {scale}", kind, make, round_weight, bits, group)

    rounded("2:4", "2:4 SparseGPT", models.pruned, round_24)
    for group in (64, 128, 32):
        name = f"2:4 SparseGPT, int4 rounded jointly, groups of {group}"
        make = lambda: models.pruned(values="int4", group_size=group)  # noqa: B023, E731
        models.row(name, "2:4", make, round_24, 4, group)
    rounded("dense", "dense", models.dense, round_dense)
    if options.recovered:
        rounded("2:4", "2:4 trained", models.trained, round_24)


if __name__ == "__main__":
    main()
