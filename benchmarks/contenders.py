"""Who runs: every op of the table and every rival, each on copies of one weight.

A `LineUp` is all that run on one weight. What it packs is kept from cell to cell, as the next cell
mostly differs in the number of tokens alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from clock import cold_bytes
from rivals import RIVALS, Product, why_absent
from torch import Tensor

from prunekern import layouts, ops
from prunekern.formats import FORMATS, compress
from prunekern.layouts import LAYOUTS, pack, takes_dtype
from prunekern.testing import random_weight, variants

LEAST_COPIES, MOST_COPIES = 2, 8  # of each weight; below the first none would be cold
STEM_KERNEL = {cls.stem: name for name, cls in FORMATS.items()}
# Other libraries' products that are ops of the table as well.
RIVAL_LAYOUTS = frozenset(name for names in layouts.RIVALS.values() for name in names)
# Kind of CPU, best first -> layouts that it lacks.
_LACKS = {"amx": (), "avx512bf16": ("amx",), "avx2": ("amx", "avx512bf16", "avx512")}
KINDS = tuple(_LACKS)


def is_24(kernel: str) -> bool:
    """Whether the format stores two of every four."""
    return FORMATS[kernel].pattern == "2:4"


def fits(kernel: str, sparsity: float) -> bool:
    """Whether a weight of this sparsity can be stored so: 2:4 is 50 %, the others take any."""
    return sparsity == 0.5 or not is_24(kernel)


@functools.lru_cache(maxsize=1)
def weight_of(shape: tuple[int, int], sparsity: float) -> Tensor:
    """The float32 weight of a cell. At 50 % it is 2:4, which every storage takes."""
    kernel = "2:4" if sparsity == 0.5 else "csr"
    return random_weight(kernel, *shape, torch.float32, density=1 - sparsity, seed=0)


def kind_here() -> str:
    """The kind of this CPU: what bars count, and which layouts are taken."""
    return next((kind for kind in KINDS if kind in ops.cpu_isa()), "avx2")


def best_layout(stem: str, dtype: torch.dtype, isa: str, device: str = "cpu") -> str:
    """The layout taken on a machine of this kind."""
    if device == "cuda":
        return ops.default_layout(stem, torch.device("cuda"), dtype)
    for layout in LAYOUTS[stem]:
        there = (stem, layout) in ops.available() and layout not in _LACKS[isa]
        if there and takes_dtype(layout, dtype):
            return layout
    raise ValueError(f"best_layout: {stem} must have a layout that runs here, got none")


@dataclass(frozen=True)
class Entrant:
    """One who can run on a weight.

    Attributes:
        name: Of a rival, or "<kernel>/<layout> <dtype>" of ours.
        dtype: Of x.
        copy: Tokens -> the product on another copy of the weight.
        kept: Weights that it has to multiply by: the non-zeros, or all where it knows none.
        pool: Whose threads.
        is_ours: Whether it is ours.
        fixed_tokens: Whether a product is for one number of tokens only.
    """

    name: str
    dtype: torch.dtype
    copy: Callable[[int], Product]
    kept: int
    pool: str = "torch"
    is_ours: bool = True
    fixed_tokens: bool = False


class Contender:
    """An entrant with tokens and copies, in rotation."""

    def __init__(self, entrant: Entrant, copies: list[Product], x: Tensor, out_features: int):
        self.entrant, self.copies, self.x = entrant, copies, x
        self.turn = 0
        y_bytes = len(x) * out_features * x.element_size()
        self.weight_bytes = copies[0].nbytes
        self.nbytes = self.weight_bytes + x.nbytes + y_bytes

    def next(self) -> Product:
        """The copy whose turn it is."""
        self.turn = (self.turn + 1) % len(self.copies)
        return self.copies[self.turn]


def short(dtype: torch.dtype) -> str:
    """As in tables: fp32, bf16, fp16."""
    return str(dtype)[6:].replace("bfloat", "bf").replace("float", "fp")


def ours(stem: str, layout: str, weight: Tensor, dtype: torch.dtype, device: str) -> Entrant:
    """One op of the table on this weight."""
    kernel = STEM_KERNEL[stem]
    packed = pack(compress(weight.to(device, dtype), kernel), layout)
    op = ops.op_for(stem, layout)

    def copy(tokens: int) -> Product:
        tensors = tuple(t.clone() for t in packed.tensors)
        return Product(lambda x: op(x, *tensors, None, *packed.shape), packed.nbytes)

    # 2:4 multiplies by both weights of each group, zeros among them or not.
    kept = weight.numel() // 2 if is_24(kernel) else int(weight.count_nonzero())
    return Entrant(f"{kernel}/{layout} {short(dtype)}", dtype, copy, kept)


def rival(name: str, weight: Tensor) -> Entrant:
    """One rival on this weight."""
    found = RIVALS[name]
    on_device = weight.to(found.device)
    kept = int(weight.count_nonzero()) if found.storage in ("csr", "2:4") else weight.numel()
    return Entrant(
        name, found.dtype, functools.partial(found.build, on_device), kept, pool=found.pool,
        is_ours=False, fixed_tokens=found.fixed_tokens,
    )  # fmt: skip


class LineUp:
    """All that run on one weight.

    Args:
        shape: (N, K).
        sparsity: Share of zeros.
        ours_of: (stem, layout, dtype) of ours.
        rivals: Names.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        shape: tuple[int, int],
        sparsity: float,
        ours_of: Iterable[tuple[str, str, torch.dtype]],
        rivals: Iterable[str],
        device: str = "cpu",
    ):
        weight = weight_of(shape, sparsity)
        self.shape, self.device = shape, device
        self.entrants = [ours(stem, name, weight, dtype, device) for stem, name, dtype in ours_of]
        self.entrants += [rival(name, weight) for name in rivals]
        self.products: dict[str, list[Product]] = {}

    def at(self, tokens: int, names: Callable[[str], bool] = lambda name: True) -> list[Contender]:
        """The contenders at so many tokens, those of names that are wanted."""
        entrants = [e for e in self.entrants if names(e.name)]
        for e in entrants:
            if e.fixed_tokens:
                self.products.pop(e.name, None)
            self.products.setdefault(e.name, [e.copy(tokens)])
        turn_bytes = sum(self.products[e.name][0].nbytes for e in entrants)
        copies = min(max(-(-cold_bytes() // turn_bytes), LEAST_COPIES), MOST_COPIES)
        x = torch.randn(tokens, self.shape[1], generator=torch.Generator().manual_seed(1))
        given = {e.dtype: x.to(self.device, e.dtype) for e in entrants}
        for e in entrants:
            products = self.products[e.name]
            products += [e.copy(tokens) for _ in range(copies - len(products))]
        return [
            Contender(e, self.products[e.name], given[e.dtype], self.shape[0]) for e in entrants
        ]


_KEPT: dict[tuple, LineUp] = {}


def line_up(*key) -> LineUp:
    """The `LineUp` of these arguments; the last one is kept, and freed before another is made."""
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = LineUp(*key)
    return _KEPT[key]


def plain_read(nbytes: int, x: Tensor) -> Contender:
    """A product that reads so many bytes once and does little with them: the next part of 1 GB."""
    columns = 4096
    buffer = torch.ones(cold_bytes() // (4 * columns), columns, device=x.device)
    parts = buffer.split(max(nbytes // (4 * columns), 1))
    vector = torch.ones(columns, device=x.device)
    products = [Product(lambda _, part=part: part @ vector, part.nbytes) for part in parts[:-1]]
    entrant = Entrant("plain read", x.dtype, lambda tokens: products[0], 0, is_ours=False)
    return Contender(entrant, products, x, 0)


def weights_of(kernel: str, dtype: torch.dtype) -> str:
    """What the format keeps weights in: the dtype, "int8" or "int4"."""
    bits = FORMATS[kernel].bits
    return f"int{bits}" if bits else str(dtype).removeprefix("torch.")


def own_variants(
    sparsity: float, weights: str, isa: str, device: str, every: bool = False
) -> tuple[tuple[str, str, torch.dtype], ...]:
    """(stem, layout, dtype of x) of ours that take weights of this sparsity.

    Args:
        sparsity: Share of zeros.
        weights: What weights are kept in, see `Cell`.
        isa: Kind of CPU.
        device: "cpu" or "cuda".
        every: All that run here but the references; else the layout that is taken by default.
    """
    found = []
    for stem, layout, dtype in variants(device):
        kernel = STEM_KERNEL[stem]
        if not fits(kernel, sparsity) or weights_of(kernel, dtype) != weights:
            continue
        if layout in _LACKS[isa]:
            continue
        is_best = layout == best_layout(stem, dtype, isa, device)
        if is_best or (every and layout not in ("reference", "scalar", *RIVAL_LAYOUTS)):
            found.append((stem, layout, dtype))
    return tuple(found)


def rivals_for(
    device: str, weights: Iterable[str], isa: str, sparsity: float = 0.5
) -> tuple[str, ...]:
    """Names of the rivals that are here, keep weights so and take weights of this sparsity."""
    absent = absent_rivals(device, isa)
    return tuple(
        name
        for name, r in RIVALS.items()
        if r.device == device
        and r.weights in set(weights)
        and name not in absent
        and (r.storage != "2:4" or sparsity == 0.5)
    )


def absent_rivals(device: str, isa: str) -> dict[str, str]:
    """Name -> why it is not among those that run."""
    limited = isa != kind_here()
    reasons = {}
    for name, r in RIVALS.items():
        if r.device == device:
            reasons[name] = why_absent(name)
            if limited and device == "cpu" and r.pool not in ("torch", "none"):
                reasons[name] = f"has no switch that limits it to {isa}"
    return {name: why for name, why in reasons.items() if why}
