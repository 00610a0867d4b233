"""Shapes and cells that are measured, and the ratios that each must reach."""

from __future__ import annotations

from dataclasses import dataclass

# (out_features, in_features): q_proj of a 7B model, and its down_proj.
SHAPES = ((4096, 4096), (4096, 11008))


# (out_features, in_features) of the Linears of real models, by the names of their modules.
MODELS = {
    "SmolLM2-135M": {
        "q_proj, o_proj": (576, 576), "k_proj, v_proj": (192, 576),
        "gate_proj, up_proj": (1536, 576), "down_proj": (576, 1536),
    },
    "Llama-2-7B": {
        "q_proj, k_proj, v_proj, o_proj": (4096, 4096),
        "gate_proj, up_proj": (11008, 4096), "down_proj": (4096, 11008),
    },
    "Llama-3-8B": {
        "q_proj, o_proj": (4096, 4096), "k_proj, v_proj": (1024, 4096),
        "gate_proj, up_proj": (14336, 4096), "down_proj": (4096, 14336),
    },
    "Llama-3-70B": {
        "q_proj, o_proj": (8192, 8192), "k_proj, v_proj": (1024, 8192),
        "gate_proj, up_proj": (28672, 8192), "down_proj": (8192, 28672),
    },
}  # fmt: skip
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
ALL_TOKENS = tuple(2**i for i in range(14))
ALL_SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Cell:
    """One race.

    Attributes:
        shape: (N, K).
        sparsity: Share of zeros; at 0.5 the weight is 2:4.
        tokens: M.
        weights: What our contenders keep weights in: "float32", "bfloat16", "float16", "int8" or
            "int4".
        label: What else the table should say.
    """

    shape: tuple[int, int]
    sparsity: float
    tokens: int
    weights: str = "bfloat16"
    label: str = ""

    @property
    def id(self) -> str:
        """As pytest and result files name it."""
        N, K = self.shape
        label = f"{self.label.split(',')[0].replace(' ', '-')}-" if self.label else ""
        return f"{label}{N}x{K}-{self.sparsity:.0%}-{self.weights}-M{self.tokens}"


@dataclass(frozen=True)
class Bar:
    """One line of the table of bars: contenders at M tokens must beat rivals by these ratios.

    Attributes:
        what: What is measured.
        stems: Our formats; the fastest counts.
        dtype: Of our weights.
        density: Of the weight.
        tokens: M of each cell.
        rivals: Names in `rivals/`; the fastest counts.
        ratios: One a cell: the rival's time over ours.
    """

    what: str
    stems: tuple[str, ...]
    dtype: str
    density: float
    tokens: tuple[int, ...]
    rivals: tuple[str, ...]
    ratios: tuple[float, ...]


_TORCH = ("torch float32", "torch bfloat16", "torch float16")
_FP32 = ("torch float32",)
_BOTH = ("bitmask", "csr")

# On a CPU with AVX2 only, and on one with AVX-512 and BF16.
BARS = {
    "avx2": (
        Bar("2:4 bf16", ("sparse24",), "bfloat16", 0.5, (1, 2, 4, 8, 16), _TORCH,
            (1.65, 2, 3, 2.5, 2.5)),
        Bar("2:4 bf16", ("sparse24",), "bfloat16", 0.5, (32, 64, 128, 512), _FP32, (1.5,) * 4),
        Bar("2:4 fp32", ("sparse24",), "float32", 0.5, (1, 16, 128), _FP32, (1.5,) * 3),
        Bar("bitmask 50 % bf16", ("bitmask",), "bfloat16", 0.5, (1, 4, 16), _TORCH, (1.3, 2, 1.3)),
        Bar("70 % fp32", _BOTH, "float32", 0.3, (128,), _FP32, (1.5,)),
        Bar("90 % fp32", _BOTH, "float32", 0.1, (128,), _FP32, (4,)),
        Bar("90 % bf16", _BOTH, "bfloat16", 0.1, (1,), ("torch CSR float32",), (1.5,)),
        Bar("90 % bf16", _BOTH, "bfloat16", 0.1, (1,), _TORCH, (3,)),
    ),
    "avx512bf16": (
        Bar("2:4 bf16", ("sparse24",), "bfloat16", 0.5, (1, 2, 4, 8, 16), _TORCH,
            (1.55, 2, 2, 1.4, 1.3)),
        Bar("2:4 bf16", ("sparse24",), "bfloat16", 0.5, (32, 64, 128, 512), ("torch bfloat16",),
            (1.1,) * 4),
        Bar("2:4 fp32", ("sparse24",), "float32", 0.5, (1, 16, 128), _FP32, (1.5,) * 3),
        Bar("bitmask 50 % bf16", ("bitmask",), "bfloat16", 0.5, (1, 4, 16), _TORCH, (1.5, 1.8, 1)),
        Bar("70 % fp32", _BOTH, "float32", 0.3, (128,), _FP32, (1.5,)),
        Bar("90 % fp32", _BOTH, "float32", 0.1, (128,), _FP32, (4,)),
        Bar("90 % bf16", _BOTH, "bfloat16", 0.1, (1,), ("torch CSR float32",), (1.5,)),
        Bar("90 % bf16", _BOTH, "bfloat16", 0.1, (1,), _TORCH, (3,)),
    ),
}  # fmt: skip
BARS["amx"] = BARS["avx512bf16"]  # none of its own
BANDWIDTH_BAR = 0.9  # 2:4 and bitmask bf16 at one token, of what a plain read loop reaches
