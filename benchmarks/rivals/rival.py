"""What a rival is: a name, what it takes, how it is made, and why it may be absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ERRORS = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "int8": 0.03, "int4": 0.2}


@dataclass(frozen=True)
class Product:
    """y = x W^T on one copy of W, as a library keeps it.

    Attributes:
        call: x -> y.
        nbytes: Of the weight that one call reads.
        seconds: x -> what one call took, where the library runs in another process and must look
            at the clock itself; else None.
    """

    call: Callable[[Tensor], Tensor]
    nbytes: int
    seconds: Callable[[Tensor], float] | None = None


@dataclass(frozen=True)
class Rival:
    """One way in which another library makes the product.

    Attributes:
        name: Shown in every table: library and dtype, and storage where it is not dense.
        dtype: Of x.
        build: (dense float32 weight [N, K] with its zeros, tokens) -> the product on a new copy.
        absent: "" or why it cannot be there at all: package, device.
        weights: "float32", "bfloat16", "float16", "int8" or "int4": what a weight is kept and
            multiplied in; the dtype of x by default.
        storage: "dense", "csr" or "2:4".
        pool: Whose threads run it; between two pools the harness waits until the first is quiet.
        device: "cpu" or "cuda".
        fixed_tokens: Whether a product is for one number of tokens only.
        error: Largest error allowed, |y - exact| / |exact| in the Frobenius norm; by default what
            such weights can cost.
    """

    name: str
    dtype: torch.dtype
    build: Callable[[Tensor, int], Product]
    absent: Callable[[], str]
    weights: str = ""
    storage: str = "dense"
    pool: str = "torch"
    device: str = "cpu"
    fixed_tokens: bool = False
    error: float = 0.0

    def __post_init__(self):
        if not self.weights:
            object.__setattr__(self, "weights", str(self.dtype).removeprefix("torch."))
        if not self.error:
            object.__setattr__(self, "error", _ERRORS[self.weights])


def no_package(*packages: str) -> Callable[[], str]:
    """A function that says which of these packages is missing, or ""."""

    def why() -> str:
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        return f"not installed: {' '.join(missing)}; make bench installs it" if missing else ""

    return why


def no_gpu(*packages: str) -> Callable[[], str]:
    """The same for what runs on NVIDIA GPUs only."""

    def why() -> str:
        return no_package(*packages)() or (
            "" if torch.cuda.is_available() else "runs on GPUs only, and there is none"
        )

    return why


def always() -> str:
    """Of what is part of torch: never absent."""
    return ""
