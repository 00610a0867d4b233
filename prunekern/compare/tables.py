"""The tables of a comparison, from what compare.json holds: heads and cells, all text."""

from __future__ import annotations

import statistics
from typing import Any

from prunekern.compare.measure import LAYER_TOKENS

Table = tuple[list[str], list[list[str]]]  # heads, rows of cells

MB = 1e6
SPEEDS = {
    "prefill_tokens_per_s": "prefill tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "decode_tokens_per_s_batch4": "decode tok/s, batch 4",
}


def row_tables(rows: list[dict[str, Any]]) -> dict[str, Table]:
    """Title -> table, a row a variant: quality and memory, speed."""
    return {"Quality and memory": _quality(rows), "Speed": _speed(rows)}


def tables(document: dict[str, Any]) -> dict[str, Table]:
    """Title -> table, all that there are."""
    found = row_tables(document["rows"])
    if document.get("sweep"):
        N, K = document["sweep"]["shape"]
        found[f"Layer of {N} x {K} against tokens: speed-up over dense (limit)"] = _sweep(
            document["sweep"]
        )
    if document.get("sensitivity"):
        found["Error of a layer's output when it alone is pruned"] = _sensitivity(
            document["sensitivity"]
        )
    found["Environment"] = _environment(document)
    return found


def targets_in_words(targets: str | list[str]) -> str:
    """As the command line takes them."""
    return targets if isinstance(targets, str) else ", ".join(targets)


def _quality(rows: list[dict[str, Any]]) -> Table:
    head = ["variant", "zeros", "perplexity", "pruned layers MB", "model MB", "file MB",
            "peak memory MB"]  # fmt: skip
    return head, [
        [
            row["variant"],
            f"{row['sparsity']:.0%}" + " removed" * (row["storage"] == "removed"),
            f"{row['perplexity']:.4g}",
            f"{row['pruned_weight_bytes'] / MB:.1f} "
            f"({row['ratio_to_dense']['pruned_weight_bytes']:.2f}x)",
            f"{row['model_weight_bytes'] / MB:.1f} "
            f"({row['ratio_to_dense']['model_weight_bytes']:.2f}x)",
            f"{row['file_bytes'] / MB:.1f}",
            f"{row['peak_rss_bytes'] / MB:.0f}",
        ]
        for row in rows
    ]


def _speed(rows: list[dict[str, Any]]) -> Table:
    head = ["variant", *SPEEDS.values(), "layer ms M=1", *(f"M={m}" for m in LAYER_TOKENS[1:])]
    return head, [
        [
            row["variant"],
            *(f"{row[key]:.1f} ({row['ratio_to_dense'][key]:.2f}x)" for key in SPEEDS),
            *(_layer_cell(row, str(m)) for m in LAYER_TOKENS),
        ]
        for row in rows
    ]


def _layer_cell(row: dict[str, Any], tokens: str) -> str:
    if tokens not in row["layer_ms"]:
        return "-"
    return f"{row['layer_ms'][tokens]:.3f} ({row['ratio_to_dense'][f'layer_m{tokens}']:.2f}x)"


def _sweep(sweep: dict[str, Any]) -> Table:
    tokens = [str(t) for t in sweep["tokens"]]
    head = ["storage", "zeros", "dtype", "kernel", *(f"M={t}" for t in tokens)]
    return head, [
        [
            line["storage"],
            f"{line['sparsity']:.0%}",
            line["dtype"],
            line["layout"] or "torch",
            *(f"{line['speedup'][t]:.2f}x ({line['limit_speedup'][t]:.1f})" for t in tokens),
        ]
        for line in sweep["lines"]
    ]


def _sensitivity(sensitivity: dict[str, Any]) -> Table:
    by_module: dict[str, list[dict[str, Any]]] = {}
    for layer in sensitivity["layers"]:
        by_module.setdefault(layer["module"], []).append(layer)
    head, body = ["layers"], [[module] for module in by_module]
    for pruning in sensitivity["prunings"]:
        head += [f"{pruning}: median", "worst", "weight energy kept"]
        for row, layers in zip(body, by_module.values(), strict=True):
            worst = max(layers, key=lambda layer: layer["error"][pruning])
            row += [
                f"{statistics.median(layer['error'][pruning] for layer in layers):.1%}",
                f"{worst['error'][pruning]:.1%} ({worst['name']})",
                f"{statistics.median(layer['energy_kept'][pruning] for layer in layers):.1%}",
            ]
        if "divergence" in sensitivity["layers"][0]:
            head.append("divergence, sum")
            for row, layers in zip(body, by_module.values(), strict=True):
                row.append(f"{sum(layer['divergence'][pruning] for layer in layers):.3g}")
    return head, body


def _environment(document: dict[str, Any]) -> Table:
    found = dict(document["environment"])
    if "memory_bytes" in found:
        found["memory"] = f"{found.pop('memory_bytes') / 1e9:.1f} GB"
    if document.get("sweep"):
        limits = document["sweep"]["limits"]
        found["read bandwidth"] = f"{limits['bytes_per_s'] / 1e9:.1f} GB/s, measured"
        for dtype, flops in limits["flops_per_s"].items():
            found[f"peak {dtype}"] = f"{flops / 1e9:.0f} GFLOP/s, measured"
    return ["what", "value"], [[k.replace("_", " "), _cell(v)] for k, v in found.items()]


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
