"""Made-up comparisons for tests of the report: any number of storages, any names, no measuring."""

from prunekern.compare.report import CompareResult

TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
STORAGES = [
    ("dense", "dense", 0.0),
    ("unstructured", "dense", 0.5),
    ("unstructured", "csr", 0.5),
    ("unstructured", "bitmask", 0.5),
    ("unstructured", "torch CSR", 0.5),
    ("2:4", "2:4", 0.5),
]


def row(pattern, storage, dtype, i, name=None):
    dense = 400e6 if dtype == "float32" else 200e6
    share = 1.0 if storage == "dense" else 0.5 + 0.05 * i
    speed = (20 if dtype == "float32" else 30) * (1 if storage == "dense" else 2 - 0.1 * i)
    tokens = {"prefill_tokens_per_s": 500.0, "decode_tokens_per_s": speed,
              "decode_tokens_per_s_batch4": 3 * speed}  # fmt: skip
    return {
        "variant": name or f"{pattern} as {storage} {dtype}",
        "pattern": pattern,
        "storage": storage,
        "targets": ["q_proj"],
        "dtype": dtype,
        "layers": 60,
        "layer_name": "model.layers.0.self_attn.q_proj",
        "layer_shape": [576, 576],
        "sparsity": 0.0 if pattern == "dense" else 0.5,
        "perplexity": {"dense": 9.87, "2:4": 33.0}.get(pattern, 20.2),
        "dense_weight_bytes": dense,
        "pruned_weight_bytes": dense * share,
        "model_weight_bytes": dense * share + 100e6,
        "file_bytes": dense * share + 100e6,
        "peak_rss_bytes": 900e6,
        **tokens,
        "layer_ms": {"1": 0.03, "16": 0.1, "128": 0.5},
        "ratio_to_dense": {
            **dict.fromkeys(tokens, 1.2),
            **dict.fromkeys(("layer_m1", "layer_m16", "layer_m128"), 1.5),
            "pruned_weight_bytes": share,
            "model_weight_bytes": share,
        },
    }


def line(pattern, storage, sparsity, dtype, i):
    table = lambda make: {str(t): make(t) for t in TOKENS}  # noqa: E731
    return {
        "variant": f"{pattern} as {storage} {dtype}",
        "pattern": pattern,
        "storage": storage,
        "sparsity": sparsity,
        "dtype": dtype,
        "layout": "" if storage == "dense" else "avx512",
        "weight_bytes": 600_000,
        "ms": table(lambda t: 0.02 + t / 4000 + i / 1000),
        "speedup": table(lambda t: 1.0 if storage == "dense" else 3 / (1 + t / 300) / (1 + i / 4)),
        "limit_ms": table(lambda t: 0.01 + t / 8000),
        "limit_speedup": table(lambda t: 4.0 + i / 3),
        "bound": table(lambda t: "bytes" if t < 64 else "FLOPs"),
        "bytes": table(lambda t: 600_000 + 2304 * t),
        "flops": table(lambda t: 330_000 * t),
    }


def layer(block, module, prunings, full):
    values = {p: 0.02 * (block + 1) + 0.03 * i for i, p in enumerate(prunings)}
    entry = {
        "name": f"model.layers.{block}.{module}", "block": block, "module": module,
        "pruned": module == "q_proj", "error": values, "energy_kept": dict.fromkeys(prunings, 0.9),
    }  # fmt: skip
    return entry | ({"divergence": values} if full else {})


def result(storages=STORAGES, dtypes=("float32", "bfloat16"), model="a model", full=False):
    """A whole CompareResult."""
    rows = [row(p, s, d, i) for d in dtypes for i, (p, s, _) in enumerate(storages)]
    zeros = {0.0: (0.0,), 0.5: (0.5, 0.7, 0.9)}
    lines = [
        line(p, s, z, d, i)
        for d in dtypes
        for i, (p, s, sparsity) in enumerate(storages)
        if s != "dense" or p == "dense"
        for z in (zeros[sparsity] if p != "2:4" else (0.5,))
    ]
    peaks = {d: 2e11 * (i + 1) for i, d in enumerate(dtypes)}
    sweep = {"shape": [576, 576], "tokens": TOKENS, "rotated_bytes": 2**29, "lines": lines,
             "limits": {"bytes_per_s": 2e10, "flops_per_s": peaks}}  # fmt: skip
    prunings = ["unstructured 50%", "2:4"]
    sensitivity = {
        "dtype": dtypes[0], "text_tokens": 512, "prunings": prunings,
        "layers": [layer(b, m, prunings, full) for b in range(30)
                   for m in ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")],
    }  # fmt: skip
    environment = {
        "model": model, "text": "a text", "windows": 16, "window_tokens": 512, "rounds": 3,
        "cpu": "a processor", "isa": ["avx2", "avx512"], "cores": 2, "threads": 2,
        "memory_bytes": 24e9, "system": "Linux", "python": "3.11", "torch": "2.13",
        "transformers": "5", "prunekern": "0.1.0", "openmp": "default",
    }  # fmt: skip
    return CompareResult(rows, environment, sweep, sensitivity)
