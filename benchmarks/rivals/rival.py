"""What a rival is: a name, what it takes, how it is made, and why it may be absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


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
        storage: "dense", "csr", "2:4", "int8" or "int4".
        pool: Whose threads run it; between two pools the harness waits until the first is quiet.
        device: "cpu" or "cuda".
        fixed_tokens: Whether a product is for one number of tokens only.
        error: Largest error allowed, |y - exact| / |exact| in the Frobenius norm; that of the
            dtype by default.
    """

    name: str
    dtype: torch.dtype
    build: Callable[[Tensor, int], Product]
    absent: Callable[[], str]
    storage: str = "dense"
    pool: str = "torch"
    device: str = "cpu"
    fixed_tokens: bool = False
    error: float = 0.0

    def __post_init__(self):
        if not self.error:
            object.__setattr__(self, "error", ERRORS[self.dtype])

    @property
    def is_exact(self) -> bool:
        """Whether it keeps 16 bits or more of each weight: what our 16-bit kernels compete with."""
        return self.storage not in ("int8", "int4")


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
