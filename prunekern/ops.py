"""The table of ops: one for each format and variant, and the public `linear` that looks it up.

`torch.ops.prunekern.<stem>_linear_<layout>` are built in C++ (csrc/ops.cpp), in Triton (_triton/)
or, as "reference", in plain torch. All of a format share schema, fake and gradient. A layer with a
packed weight calls its op directly; nothing is chosen on the hot path.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunekern import _triton, reference, rivals
from prunekern.formats import decompress, take_kept
from prunekern.layouts import (
    FORMATS,
    LAYOUTS,
    PANEL_LAYOUTS,
    RIVALS,
    Facts,
    Packed,
    bitmask,
    csr,
    device_of,
    layout_for,
    pack,
    unpack,
    why_not,
)

_QUANTIZED_SCHEMA = (
    "(Tensor x, Tensor values, Tensor meta, Tensor scales, Tensor? bias, int out_features, "
    "int in_features) -> Tensor"
)
_SCHEMAS = {
    "sparse24_int8": _QUANTIZED_SCHEMA,
    "sparse24_int4": _QUANTIZED_SCHEMA,
    "sparse24": "(Tensor x, Tensor values, Tensor meta, Tensor? bias, int out_features, "
    "int in_features) -> Tensor",
    "bitmask": "(Tensor x, Tensor values, Tensor bitmask, Tensor offsets, Tensor? bias, "
    "int out_features, int in_features) -> Tensor",
    "csr": "(Tensor x, Tensor values, Tensor col_indices, Tensor crow_indices, Tensor? bias, "
    "int out_features, int in_features) -> Tensor",
}
# Of the other ops in Triton.
_TRITON_SCHEMAS = {
    ("sparse24", "pack"): "(Tensor values, Tensor meta, int out_features, int in_features) -> "
    "(Tensor, Tensor)",
    ("sparse24", "decompress"): "(Tensor values, Tensor meta, int out_features, "
    "int in_features) -> Tensor",
    ("sparse24", "compress"): "(Tensor weight, bool largest) -> (Tensor, Tensor, Tensor)",
}
_GRAD_SCHEMA = (
    "(Tensor grad, Tensor values, Tensor col_indices, Tensor crow_indices, int out_features, "
    "int in_features) -> Tensor"
)
_REFERENCES = {
    "sparse24": reference.sparse24_linear,
    "sparse24_int8": reference.sparse24_int8_linear,
    "sparse24_int4": reference.sparse24_int4_linear,
    "bitmask": reference.bitmask_linear,
    "csr": reference.csr_linear,
}


def _load_library() -> str | None:
    """Loads the compiled ops; where that fails, says why and leaves the references."""
    path = Path(__file__).with_name("_ops.so")
    if not path.exists():
        return f"{path.name} is not there; build it with: pip install --no-build-isolation ."
    try:
        importlib.import_module("prunekern._C")  # says what the CPU can run: needed as well
        torch.ops.load_library(str(path))
    except (OSError, ImportError) as error:
        return (
            f"the compiled part does not load with torch {torch.__version__}: {error}; "
            "build it anew with: pip install --no-build-isolation ."
        )
    return None


# None, or why there are no compiled ops.
LIBRARY_ERROR = _load_library()


def _register() -> dict[tuple[str, str], torch._ops.OpOverload]:
    """Registers references, rivals and fakes; returns (stem, layout) -> op."""
    fragment = torch.library.Library("prunekern", "FRAGMENT")
    _register.keep_alive = fragment
    table = {}
    for stem, layouts in RIVALS.items():
        for layout in rivals.installed().intersection(layouts):
            fragment.define(f"{stem}_linear_{layout}{_SCHEMAS[stem]}")
            fragment.impl(f"{stem}_linear_{layout}", rivals.LINEARS[layout], "CUDA")
    for stem, verbs in _triton.OPS.items() if not _triton.WHY_ABSENT else ():
        for verb in verbs:
            name = f"{stem}_{verb}_triton"
            schema = _SCHEMAS[stem] if verb == "linear" else _TRITON_SCHEMAS[stem, verb]
            fragment.define(f"{name}{schema}")
            for device in ("CUDA", "CPU") if _triton.INTERPRETED else ("CUDA",):
                fragment.impl(name, _triton.function(stem, verb), device)
    for stem, layouts in LAYOUTS.items():
        fragment.define(f"{stem}_linear_reference{_SCHEMAS[stem]}")
        fragment.impl(f"{stem}_linear_reference", _REFERENCES[stem], "CompositeExplicitAutograd")
        for layout in layouts + RIVALS.get(stem, ()):
            name = f"{stem}_linear_{layout}"
            if hasattr(torch.ops.prunekern, name):
                table[stem, layout] = getattr(torch.ops.prunekern, name).default
                torch.library.register_fake(f"prunekern::{name}", _fake_linear, lib=fragment)
            if hasattr(torch.ops.prunekern, f"{stem}_pack_{layout}"):
                torch.library.register_fake(
                    f"prunekern::{stem}_pack_{layout}",
                    functools.partial(FORMATS[stem].fake_pack, layout),
                    lib=fragment,
                )
    if ("csr", "simt") in table:
        fragment.define(f"csr_grad_simt{_GRAD_SCHEMA}")
        fragment.impl("csr_grad_simt", _csr_grad, "CUDA")
    for name, fake in (
        *((f"sparse24_unpack_{layout}", _fake_sparse24_unpack) for layout in PANEL_LAYOUTS),
        ("sparse24_decompress", _fake_decompress),
        ("bitmask_decompress_sm80", _fake_bitmask_decompress),
        ("bitmask_unpack_sm80", bitmask.fake_unpack),
        ("sparse24_decompress_triton", _fake_decompress),
        ("sparse24_compress_triton", _fake_sparse24_compress),
        ("csr_grad_simt", _fake_csr_grad),
    ):
        if hasattr(torch.ops.prunekern, name):
            torch.library.register_fake(f"prunekern::{name}", fake, lib=fragment)
    return table


def _fake_linear(x, *args):
    return x.new_empty((*x.shape[:-1], args[-2]))


def _fake_sparse24_unpack(values, meta, out_features, in_features):
    groups = -(-in_features // 4)
    packed = meta.new_empty((out_features, -(-groups // 2)), dtype=torch.uint8)
    return values.new_empty((out_features, 2 * groups)), packed


def _fake_decompress(values, meta, out_features, in_features):
    return values.new_empty((out_features, in_features))


def _fake_bitmask_decompress(values, bitmask, offsets, out_features, in_features):
    return values.new_empty((out_features, in_features))


def _fake_sparse24_compress(weight, largest):
    groups = -(-weight.shape[1] // 4)
    meta = weight.new_empty((len(weight), -(-groups // 2)), dtype=torch.uint8)
    values = weight.new_empty((len(weight), 2 * groups))
    return values, meta, weight.new_empty(1, dtype=torch.int32)


# The tensors of W^T by the values of W, for as long as those live.
_TRANSPOSED = WeakTensorKeyDictionary()


def _csr_grad(grad, values, col_indices, crow_indices, out_features, in_features):
    """dL/dx = dL/dy W, by the kernel of the product from W^T, which is packed when first wanted."""
    tensors = _TRANSPOSED.get(values)
    if tensors is None:
        shape = (out_features, in_features)
        packed = Packed("csr", "simt", shape, (values, col_indices, crow_indices))
        tensors = pack(csr.transpose(unpack(packed)), "simt").tensors
        _TRANSPOSED[values] = tensors
    return OPS["csr", "simt"](grad, *tensors, None, in_features, out_features)


def _fake_csr_grad(grad, *args):
    return grad.new_empty((*grad.shape[:-1], args[-1]))


OPS = _register()


def _find_cpu_isa() -> frozenset[str]:
    found = {"reference"}
    if _triton.INTERPRETED and not _triton.WHY_ABSENT:
        found.add("triton")
    if LIBRARY_ERROR is None:
        from prunekern import _C

        found |= {v for v, lacks in _C.cpu_variants().items() if not lacks}
    return frozenset(found)


# Facts of this process, found once: torch.compile could not look into the functions that find them.
_CPU_ISA = _find_cpu_isa()
_AVAILABLE = {
    "cpu": frozenset(key for key in OPS if key[1] in _CPU_ISA),
    "cuda": frozenset(key for key in OPS if device_of(key[1]) in ("", "cuda")),
}


def cpu_isa() -> frozenset[str]:
    """Variants that this CPU and operating system can run; "reference" always."""
    return _CPU_ISA


def available(device: str = "cpu") -> frozenset[tuple[str, str]]:
    """(stem, layout) of every op that runs on this CPU, or that was built for GPUs ("cuda")."""
    return _AVAILABLE[device]


def facts_of(device: torch.device, dtype: torch.dtype) -> Facts:
    """What `layout_for` needs to know for a weight on a device of this machine."""
    return Facts(
        device=device.type,
        arch=torch.cuda.get_device_capability(device)
        if device.type == "cuda" and torch.version.hip is None
        else None,
        isa=cpu_isa(),
        dtype=dtype,
        available=available("cuda" if device.type == "cuda" else "cpu"),
    )


def default_layout(stem: str, device: torch.device, dtype: torch.dtype) -> str:
    """The layout that `layout_for` takes on this machine."""
    return layout_for(stem, facts_of(device, dtype))


def check_runs(stem: str, layout: str, device: torch.device, dtype: torch.dtype, who: str) -> None:
    """Raises ValueError where a weight of this dtype on this device can not have the layout."""
    reason = why_not(stem, layout, facts_of(device, dtype))
    if reason:
        here = ", ".join(n for n in LAYOUTS[stem] if (stem, n) in facts_of(device, dtype).available)
        raise ValueError(
            f"{who}: layout of {stem} must be one that runs here ({here}), got {layout!r}: {reason}"
        )


def op_for(stem: str, layout: str, who: str = "op_for") -> torch._ops.OpOverload:
    """The op of one variant.

    Raises:
        ValueError: It was not built, or this CPU can not run it.
    """
    if (stem, layout) not in _AVAILABLE["cpu"] and (stem, layout) not in _AVAILABLE["cuda"]:
        here = ", ".join(name for name in LAYOUTS[stem] if (stem, name) in available())
        raise ValueError(
            f"{who}: layout of {stem} must be one that runs here ({here}), got {layout!r}; "
            "prunekern.hardware() says why"
        )
    return OPS[stem, layout]


def _dense(packed: Packed) -> Tensor:
    """The dense weight; on a GPU by a kernel where there is one, without more memory than that."""
    is_24 = packed.stem == "sparse24"
    if is_24 and packed.layout == "triton":
        return torch.ops.prunekern.sparse24_decompress_triton(*packed.tensors, *packed.shape)
    on_gpu = packed.tensors[0].device.type == "cuda"
    if (packed.stem, packed.layout) == ("bitmask", "sm80") and on_gpu:
        return torch.ops.prunekern.bitmask_decompress_sm80(*packed.tensors, *packed.shape)
    c = unpack(packed)
    if is_24 and packed.layout in PANEL_LAYOUTS and on_gpu:
        return torch.ops.prunekern.sparse24_decompress(c.values, c.meta, *c.shape)
    return decompress(c)


class _Linear(torch.autograd.Function):
    """Gradients with respect to x and bias; the packed weight is fixed.

    For that of x the weight is unpacked and made dense on its device: 1.5625 times the bytes of the
    dense weight at 16 bits for as long as the product takes, one layer at a time. Not so where CSR
    is "simt": there W^T is packed beside W, once, and no weight is ever dense.
    """

    @staticmethod
    def forward(ctx, x, bias, op, packed):
        ctx.packed = packed
        return op(x, *packed.tensors, bias, *packed.shape)

    @staticmethod
    def backward(ctx, grad):
        grad_x = grad_bias = None
        packed = ctx.packed
        if ctx.needs_input_grad[0] and (packed.stem, packed.layout) == ("csr", "simt"):
            grad_x = torch.ops.prunekern.csr_grad_simt(grad, *packed.tensors, *packed.shape)
        elif ctx.needs_input_grad[0]:
            grad_x = grad @ _dense(packed).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.flatten(0, -2).sum(0) if grad.dim() > 1 else grad
        return grad_x, grad_bias, None, None


def linear_with_grad(x: Tensor, bias: Tensor | None, op, packed: Packed) -> Tensor:
    """`op` on a packed weight, recorded for autograd."""
    return _Linear.apply(x, bias, op, packed)


def weight_grad(x: Tensor, grad: Tensor, packed: Packed) -> Tensor:
    """The gradient of the kept weights, dL/dW = grad^T x where W keeps one: to train them on.

    Args:
        x: [..., K], the layer's input.
        grad: [..., N], dL/dy.
        packed: W.

    Returns:
        Of the shape and in the order of the canonical `values`, in x's dtype. The product is dense,
        N K elements for a moment, as kept weights are scattered.

    Raises:
        ValueError: The kept weights are whole numbers.
    """
    if not packed.tensors[0].is_floating_point():
        raise ValueError(
            f"weight_grad: the weight must have float values to train, got {packed.stem}"
        )
    dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    return take_kept(dense, unpack(packed))


def linear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """y[..., N] = x[..., K] W[N, K]^T + bias[N] with W compressed.

    Args:
        x: [..., K], any strides, of the weight's dtype and on its device.
        packed: W, see `prunekern.layouts.pack`.
        bias: [N] of x's dtype, or None.

    Returns:
        [..., N] of x's dtype; sums in float32. Differentiable in x and bias.

    Raises:
        ValueError: The layout does not run on this machine.
        RuntimeError: A wrong dtype, device or shape; the message says what was expected.
    """
    op = op_for(packed.stem, packed.layout, "linear")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return linear_with_grad(x, bias, op, packed)
    return op(x, *packed.tensors, bias, *packed.shape)
