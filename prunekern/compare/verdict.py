"""The verdict: plain words computed from the rows, nothing that the numbers do not say."""

from __future__ import annotations

from typing import Any

# Below this difference two speeds count as equal: rounds differ by as much.
NOISE = 0.05
_REMOVED_FROM = {"heads": "attention's weights", "channels": "the MLPs' weights"}


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences, most wanted first."""
    sentences = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        sentences += _for_dtype([row for row in rows if row["dtype"] == dtype], dtype)
    dense = next(row for row in rows if row["pattern"] == "dense")
    share = dense["pruned_weight_bytes"] / dense["model_weight_bytes"]
    if share < 0.5:
        sentences.append(
            f"The pruned layers are {share:.0%} of this model's weights, so what happens to "
            "them moves the whole model little; --targets all-linear prunes more and costs more "
            "quality."
        )
    return sentences


def _for_dtype(rows: list[dict[str, Any]], dtype: str) -> list[str]:
    dense = next(row for row in rows if row["pattern"] == "dense")
    sparse = [row for row in rows if row["storage"] not in ("dense", "removed")]
    stored_dense = next((r for r in rows if r["storage"] == "dense" and r is not dense), None)
    sentences = []
    if stored_dense:
        sentences.append(
            f"{dtype}: pruning alone gains nothing: stored dense, {stored_dense['pattern']} "
            f"decodes at {_times(stored_dense, 'decode_tokens_per_s')} of dense and weighs as much."
        )
    for row in rows:
        if row["storage"] == "removed":
            sentences.append(
                f"{dtype}: with {row['sparsity']:.0%} of {_REMOVED_FROM[row['pattern']]} removed "
                f"the model decodes at {_times(row, 'decode_tokens_per_s')} of dense and prefills "
                f"at {_times(row, 'prefill_tokens_per_s')}, by dense kernels alone, with "
                f"{row['ratio_to_dense']['model_weight_bytes']:.0%} of its bytes and a perplexity "
                f"of {_ppl(row)}."
            )
    if not sparse:
        return sentences
    fastest = max(sparse, key=lambda row: row["ratio_to_dense"]["decode_tokens_per_s"])
    speed = fastest["ratio_to_dense"]["decode_tokens_per_s"]
    if speed > 1 + NOISE:
        sentences.append(
            f"{dtype}: the fastest in decoding is {fastest['variant']}, {speed:.2f}x dense, with "
            f"{fastest['ratio_to_dense']['pruned_weight_bytes']:.0%} of the bytes in the pruned "
            f"layers and a perplexity of {_ppl(fastest)} instead of {_ppl(dense)}."
        )
    else:
        sentences.append(
            f"{dtype}: no sparse variant decodes faster than dense here; the best, "
            f"{fastest['variant']}, reaches {speed:.2f}x."
        )
    best = min(sparse, key=lambda row: row["perplexity"])
    two_four = next((row for row in sparse if row["pattern"] == "2:4"), None)
    if two_four and best["perplexity"] < two_four["perplexity"] * 0.98:
        twins = [r for r in sparse if r["pattern"] == best["pattern"]]
        rival = max(twins, key=lambda row: row["ratio_to_dense"]["decode_tokens_per_s"])
        sentences.append(
            f"{dtype}: at {rival['sparsity']:.0%} zeros {rival['pattern']} keeps more quality than "
            f"2:4 (perplexity {_ppl(rival)} against {_ppl(two_four)}); its fastest storage, "
            f"{rival['storage']}, decodes at {_times(rival, 'decode_tokens_per_s')} of dense and "
            f"prefills at {_times(rival, 'prefill_tokens_per_s')}, 2:4 at "
            f"{_times(two_four, 'decode_tokens_per_s')} and "
            f"{_times(two_four, 'prefill_tokens_per_s')}."
        )
    bigger = [row for row in sparse if row["ratio_to_dense"]["pruned_weight_bytes"] >= 0.98]
    for row in bigger:
        sentences.append(
            f"{dtype}: {row['storage']} saves no memory at {row['sparsity']:.0%} zeros: it needs "
            f"{row['ratio_to_dense']['pruned_weight_bytes']:.0%} of dense."
        )
    return sentences


def _times(row: dict[str, Any], key: str) -> str:
    return f"{row['ratio_to_dense'][key]:.2f}x"


def _ppl(row: dict[str, Any]) -> str:
    return f"{row['perplexity']:.4g}"
