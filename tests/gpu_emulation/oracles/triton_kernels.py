"""Triton kernels in the tutorials' style: what Triton makes of them judges the emulator."""

import triton
import triton.language as tl


@triton.jit
def vector_add(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    total = tl.load(x + offsets, mask=mask) + tl.load(y + offsets, mask=mask)
    tl.store(out + offsets, total, mask=mask)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    values = tl.load(x + row * columns + offsets, mask=mask, other=-float("inf"))
    weights = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * columns + offsets, weights / tl.sum(weights, axis=0), mask=mask)


@triton.jit
def layer_norm(x, weight, bias, out, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    values = tl.load(x + row * columns + offsets, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / columns
    centred = tl.where(mask, values - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / columns + eps)
    normal = centred * scale * tl.load(weight + offsets, mask=mask) + tl.load(
        bias + offsets, mask=mask
    )
    tl.store(out + row * columns + offsets, normal, mask=mask)


@triton.jit
def matmul(
    a, b, c, m, n, k, stride_am, stride_bk, stride_cm,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        kk = start + inner
        left = tl.load(
            a + rows[:, None] * stride_am + kk[None, :],
            mask=(rows[:, None] < m) & (kk[None, :] < k),
            other=0.0,
        )
        right = tl.load(
            b + kk[:, None] * stride_bk + columns[None, :],
            mask=(kk[:, None] < k) & (columns[None, :] < n),
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None] * stride_cm + columns[None, :], total, mask=mask)


@triton.jit
def matmul_descriptors(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    left = tl.make_tensor_descriptor(a, [m, k], [k, 1], [BM, BK])
    right = tl.make_tensor_descriptor(b, [k, n], [n, 1], [BK, BN])
    out = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        total = tl.dot(left.load([row, start]), right.load([start, column]), total)
    out.store([row, column], total)


@triton.jit
def prefix_sum(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    mask = offsets < n
    values = tl.load(x + offsets, mask=mask, other=0)
    tl.store(out + offsets, tl.cumsum(values, axis=0), mask=mask)


@triton.jit
def row_sum(x, out, rows, columns, BM: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    total = tl.zeros((BM,), dtype=tl.float32)
    for start in range(0, columns, BN):
        column = start + tl.arange(0, BN)
        mask = (row[:, None] < rows) & (column[None, :] < columns)
        values = tl.load(x + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
        total += tl.sum(values, axis=1)
    tl.store(out + row, total, mask=row < rows)


@triton.jit
def histogram(x, counts, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.atomic_add(counts + tl.load(x + offsets, mask=mask, other=0), 1, mask=mask)


@triton.jit
def linear(x, w, y, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y[m, n] = x[m, k] w[n, k]^T as tutorial 03 writes a matrix product: rows wrap round, K is
    masked, pointers advance."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    left = x + (rows % m)[:, None] * k + inner[None, :]
    right = w + (columns % n)[None, :] * k + inner[:, None]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, tl.cdiv(k, BK)):
        a = tl.load(left, mask=inner[None, :] < k - start * BK, other=0.0)
        b = tl.load(right, mask=inner[:, None] < k - start * BK, other=0.0)
        total = tl.dot(a, b, total)
        left += BK
        right += BK
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(y + rows[:, None] * n + columns[None, :], total.to(tl.float16), mask=mask)


@triton.jit
def gemv(x, w, y, n, k, BN: tl.constexpr, BK: tl.constexpr):
    """y[n] = w[n, k] x[k]: BN rows a program, sums by lane until the end."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BN, BK), dtype=tl.float32)
    for start in range(0, k, BK):
        mask = (rows[:, None] < n) & (start + inner[None, :] < k)
        a = tl.load(w + rows[:, None] * k + start + inner[None, :], mask=mask, other=0.0)
        b = tl.load(x + start + inner, mask=start + inner < k, other=0.0)
        total += a.to(tl.float32) * b.to(tl.float32)[None, :]
    tl.store(y + rows, tl.sum(total, axis=1).to(tl.float16), mask=rows < n)
