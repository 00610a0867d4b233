"""Which layout a weight takes, from facts alone: no look at the machine in here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_X86 = ("amx", "avx512bf16", "avx512", "avx2")
# The variants of each format, best first.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "sparse24": ("sm90a", "sm80", *_X86, "scalar", "triton", "reference"),
    "bitmask": ("sm80", *_X86, "scalar", "triton", "reference"),
    "sparse24_int8": ("sm80", "sm80a8", "amx", "avx512", "avx2", "scalar", "reference"),
    "sparse24_int4": ("sm80", "amx", "avx512", "avx2", "scalar", "reference"),
    "csr": ("simt", "avx512", "avx2", "scalar", "triton", "reference"),
}
PANEL_LAYOUTS = ("sm90a", "sm80")
# Layouts whose kernels round x to 8 bits, token by token: taken only where somebody names them.
ROUND_X = ("sm80a8",)
# Variants that exist for comparison: taken only where somebody names them. See rivals.py.
RIVALS: dict[str, tuple[str, ...]] = {"sparse24": ("cusparselt", "cutlass"), "csr": ("cusparse",)}
# Layouts for GPUs: first and last compute capability of NVIDIA's that can run them.
CAPABILITIES = {
    "sm90a": ((9, 0), (9, 0)),
    "sm80": ((8, 0), (99, 9)),
    "sm80a8": ((8, 0), (99, 9)),
    "simt": ((7, 5), (99, 9)),
    "triton": ((7, 5), (99, 9)),
    "cusparselt": ((8, 0), (99, 9)),
    "cutlass": ((8, 0), (99, 9)),
    "cusparse": ((7, 5), (99, 9)),
}
# Layouts that are for some dtypes only.
ONLY_DTYPES = {
    **dict.fromkeys(("amx", "avx512bf16"), (torch.bfloat16,)),
    **dict.fromkeys(
        ("sm90a", "sm80", "sm80a8", "cusparselt", "cutlass"), (torch.bfloat16, torch.float16)
    ),
}


def takes_dtype(layout: str, dtype: torch.dtype) -> bool:
    """Whether weights of this dtype can have the layout."""
    return dtype in ONLY_DTYPES.get(layout, (dtype,))


def device_of(layout: str) -> str:
    """Type of the device that the layout is for; "" for "reference", which runs on any."""
    if layout == "reference":
        return ""
    return "cuda" if layout in CAPABILITIES else "cpu"


@dataclass(frozen=True)
class Facts:
    """All that the choice of a layout depends on.

    Attributes:
        device: Type of the device, "cpu", "cuda" or another.
        arch: The compute capability of an NVIDIA GPU, None on other devices: "cuda" without one is
            an AMD GPU.
        isa: Variants that the CPU can run; "triton" where its interpreter is on.
        dtype: Of the weight.
        available: (stem, layout) of the ops that were built.
    """

    device: str
    arch: tuple[int, int] | None
    isa: frozenset[str]
    dtype: torch.dtype
    available: frozenset[tuple[str, str]]


def why_not(stem: str, layout: str, facts: Facts) -> str:
    """Why a weight can not have this layout, or ""."""
    if layout == "reference":
        return ""
    if not takes_dtype(layout, facts.dtype):
        return f"{layout} is for {_dtypes(layout)}, not for {facts.dtype}"
    if layout == "triton" and facts.device == "cpu" and layout not in facts.isa:
        return "triton runs on a cpu only in its interpreter: start Python with TRITON_INTERPRET=1"
    if facts.device != device_of(layout) and (layout, facts.device) != ("triton", "cpu"):
        return f"{layout} runs on {device_of(layout)}, not on {facts.device}"
    if (stem, layout) not in facts.available:
        return f"{layout} was not built" if layout != "triton" else "the triton package is missing"
    if facts.device == "cpu":
        return "" if layout in facts.isa else f"this CPU lacks instructions of {layout}"
    if facts.arch is None:
        return "" if layout == "triton" else f"{layout} needs an NVIDIA GPU"
    first, last = CAPABILITIES[layout]
    if first <= facts.arch <= last:
        return ""
    wanted = ".".join(map(str, first)) + ("" if first == last else " or more")
    return (
        f"{layout} needs compute capability {wanted}, this GPU has {facts.arch[0]}.{facts.arch[1]}"
    )


def layout_for(stem: str, facts: Facts) -> str:
    """The layout to take for a weight, from facts alone: no look at the machine in here.

    Returns:
        The first of LAYOUTS[stem] that is built, made for the device, runs there, takes the dtype
        and leaves x as it is; "reference", which is plain torch, takes all. All of them take every
        shape.
    """
    return next(
        layout
        for layout in LAYOUTS[stem]
        if device_of(layout) in ("", facts.device)
        and layout not in ROUND_X
        and not why_not(stem, layout, facts)
    )


def why_reference(stem: str, facts: Facts) -> str:
    """Where `layout_for` says "reference": why none of the device's own layouts is taken."""
    own = [layout for layout in LAYOUTS[stem] if device_of(layout) == facts.device]
    if not own:
        return f"{stem} has no kernels for {facts.device}"
    return "; ".join(why_not(stem, layout, facts) for layout in own)


def _dtypes(layout: str) -> str:
    return " or ".join(map(str, ONLY_DTYPES[layout]))


def check_layout(stem: str, layout: str, dtype: torch.dtype, who: str = "pack") -> None:
    """Raises ValueError unless the format has this layout and the layout takes the dtype."""
    known = LAYOUTS[stem] + RIVALS.get(stem, ())
    if layout not in known:
        raise ValueError(
            f"{who}: layout of {stem} must be one of {', '.join(known)}, got {layout!r}"
        )
    if not takes_dtype(layout, dtype):
        raise ValueError(f"{who}: {layout} must have {_dtypes(layout)} weights, got {dtype}")
