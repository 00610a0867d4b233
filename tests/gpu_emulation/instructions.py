"""Runs a few instructions on every element of arrays: ``run("add.s32 d, a, b;", d=..., a=...)``."""

from __future__ import annotations

import numpy as np

from .emulator import Module

BLOCK = 256


def _bits(dtype) -> int:
    return 1 if dtype == np.bool_ else 8 * dtype.itemsize


def _memory(array: np.ndarray) -> np.ndarray:
    """As the kernel sees it: unsigned words of the same size, predicates as 32-bit words."""
    if array.dtype == np.bool_:
        return array.astype(np.uint32)
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def text(code: str, registers: dict[str, tuple[int, bool]]) -> str:
    """A kernel whose thread i loads element i of each input, runs the code, stores each output.

    Args:
        code: instructions that name the registers.
        registers: bits (1 for a predicate) and whether it is an output, by name.
    """
    kinds = {1: "pred", 8: "b16", 16: "b16", 32: "b32", 64: "b64"}
    parameters = ", ".join(f".param .u64 p_{name}" for name in registers)
    lines = [f".reg .{kinds[bits]} {name};" for name, (bits, _) in registers.items()]
    lines += [
        ".reg .pred %outside; .reg .b32 %i, %block, %size, %word; .reg .b64 %at, %offset;",
        "mov.u32 %i, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %size, %ntid.x;",
        "mad.lo.u32 %i, %block, %size, %i; ld.param.u32 %word, [count];",
        "setp.ge.u32 %outside, %i, %word; @%outside ret;",
    ]
    loads, stores = [], []
    for name, (bits, output) in registers.items():
        size = max(bits, 8) // 8 if bits > 1 else 4
        place = (
            f"ld.param.u64 %at, [p_{name}]; mul.wide.u32 %offset, %i, {size}; "
            "add.u64 %at, %at, %offset;"
        )
        if output:
            word = name if bits > 1 else "%word"
            made = "" if bits > 1 else f"selp.u32 %word, 1, 0, {name}; "
            stores.append(f"{made}{place} st.global.b{8 * size} [%at], {word};")
        elif bits == 1:
            loads.append(f"{place} ld.global.b32 %word, [%at]; setp.ne.u32 {name}, %word, 0;")
        else:
            loads.append(f"{place} ld.global.b{bits} {name}, [%at];")
    body = "\n".join([*lines, *loads, code, *stores, "ret;"])
    return (
        ".version 8.7\n.target sm_90a\n.address_size 64\n"
        f".visible .entry kernel({parameters}, .param .u32 count)\n{{\n{body}\n}}\n"
    )


def run(code: str, **registers):
    """The outputs, in the order given: registers are arrays (inputs) or types (outputs).

    Types of numpy and ml_dtypes; ``bool`` is a predicate.
    """
    inputs = {n: np.asarray(v) for n, v in registers.items() if not isinstance(v, type)}
    outputs = {n: np.dtype(v) for n, v in registers.items() if isinstance(v, type)}
    count = len(next(iter(inputs.values())))
    if any(len(v) != count for v in inputs.values()):
        raise ValueError("the inputs differ in length")
    memory = {n: _memory(v) for n, v in inputs.items()}
    memory |= {n: _memory(np.zeros(count, t)) for n, t in outputs.items()}
    kinds = {n: (_bits(inputs[n].dtype), False) for n in inputs}
    kinds |= {n: (_bits(t), True) for n, t in outputs.items()}
    Module(text(code, kinds)).launch(
        "kernel", -(-count // BLOCK), BLOCK, [*memory.values(), count], names=[*memory, "count"]
    )
    results = [
        memory[n].astype(bool) if t == np.bool_ else memory[n].view(t) for n, t in outputs.items()
    ]
    return results[0] if len(results) == 1 else results
