"""The layout "simt" of CSR, which csrc/cuda/csr_simt.cu reads.

W [N, K] in slices of 2048 columns and in strips of 8 rows, rows from the longest to the shortest
and those of one length in their order; S = ceil(K / 2048), R = ceil(N / 8). A tile is a strip
within a slice, and a row of it is padded to whole pairs of vectors of 8 entries:

    a step of a tile    row 0   lanes  0 ..  3  | 8 entries | 8 entries | 8 entries | 8 entries |
    (32 vectors)        row 1   lanes  4 ..  7  | 8 entries | 8 entries |           |           |
                        ...                     ^ one pair of vectors: whole sectors of either kind
                        row 7   lanes 28 .. 31

    values         [T, 2, 8]   T pairs, tile by tile (slice by slice), step by step, row by row
                   float32     [T, 2, 2, 4], the halves of both vectors before each other
    col_indices    uint16 [T, 2, 8], within the slice; from 2048 on: padding, whose value is +0
    crow_indices   int32, one after the other:
                   [8 R]       the row of each place in the order of lengths (from N on: none)
                   [S R + 1]   the first unit of each tile. A unit is a step, or a tile's end; a
                               tile without entries has none, except the first where all are
                   [R + 1]     units of the strips before each, in all slices
                   [1]         strips that have units
                   [3, U]      of each unit the first pair, the tile, and the map: bit 2 r + i is
                               set where row r has pair i of the step; 0 at a tile's end

Within a row, entries are in an order that spares shared memory conflicts. Columns modulo 8 choose
the banks of x: entry i of lane l of row r wants (l + 4 ((i + r) % 2)) modulo 8, so that the eight
lanes of two rows ask for all banks. A class of columns fills its own places from the front; what
finds no more room there, a twentieth of a random row of 200, goes to other classes' last places.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import CSR, column_type, row_pointer_type

SLICE = 2048  # columns
STRIP = 8  # rows
VECTOR = 8  # entries of a lane
LANES = 4  # of a row
PAIR = 2 * VECTOR
CLASSES = 8
ROOM = VECTOR // 2  # of a class in a vector of its lane


def _ceil_div(a, b):
    return -(-a // b)


def sizes(N: int, K: int) -> tuple[int, int]:
    """(slices S, strips R)."""
    return _ceil_div(K, SLICE), _ceil_div(N, STRIP)


def fixed_words(N: int, K: int) -> tuple[int, ...]:
    """Words of the tables in crow_indices that come before those of units."""
    S, R = sizes(N, K)
    return STRIP * R, S * R + 1, R + 1, 1


def _before(counts: Tensor) -> Tensor:
    """The sum of all counts before each."""
    return counts.cumsum(0) - counts


def _ranks(counts: Tensor) -> Tensor:
    """0 .. n - 1 for each count n, one after the other."""
    start = _before(counts).repeat_interleave(counts)
    return torch.arange(len(start), device=counts.device) - start


def _repeated(counts: Tensor) -> Tensor:
    """i, n times for the i-th count n."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _spread(key: Tensor, counts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The places of all entries.

    Args:
        key: [nnz], 8 t + class of each entry of row t of all tiles, rising.
        counts: Entries of each such key.
        pairs: Pairs of vectors of each row of all tiles.

    Returns:
        (the key whose place an entry takes, its rank there), for each of `key`.
    """
    lanes = torch.arange(CLASSES, device=key.device) % LANES
    room = (_ceil_div(2 * pairs.unsqueeze(1) - lanes, LANES) * ROOM).flatten()
    rank = _ranks(counts)
    outside = rank >= room[key]
    spare = (room - counts).clamp(min=0)
    spare_key = _repeated(spare)
    spare_rank = counts[spare_key] + _ranks(spare)
    # Places of one rank are read together. Filled rank by rank, few wavefronts have strangers.
    order = (spare_key // CLASSES * SLICE + spare_rank).argsort(stable=True)
    rows = key[outside] // CLASSES
    first_spare = _before(spare.view(-1, CLASSES).sum(1))
    taken = order[first_spare[rows] + _ranks(rows.bincount(minlength=len(pairs)))]
    key = key.clone()
    key[outside], rank[outside] = spare_key[taken], spare_rank[taken]
    return key, rank


def _units(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tables of units.

    Args:
        pairs: [S, R, 8], pairs of vectors of each row of each tile.

    Returns:
        (units of each tile [S, R], the first unit of each tile and their number [SR + 1], the tile
        of each unit [U], the pairs of each of its rows [U, 8]).
    """
    step_pairs = LANES // 2
    steps = _ceil_div(pairs.amax(2), step_pairs)
    units = steps + (steps > 0)
    units[0, 0] += (units.sum() == 0).long()
    starts = pad(units.flatten().cumsum(0), (1, 0))
    tiles = _repeated(units.flatten())
    done = step_pairs * _ranks(units.flatten())
    left = pairs.flatten(0, 1)[tiles] - done.unsqueeze(1)
    return units, starts, tiles, left.clamp(0, step_pairs)


def _padding(unit_pairs: Tensor) -> Tensor:
    """Columns [T, 2, 8] of padding: those that its places want, of the zeros behind a slice."""
    row = _repeated(unit_pairs.flatten()) % STRIP
    half = _ranks(unit_pairs.flatten())
    lane = 2 * half.view(-1, 1, 1) + torch.arange(2, device=row.device).view(1, 2, 1)
    entry = torch.arange(VECTOR, device=row.device) + row.view(-1, 1, 1)
    return SLICE + lane + LANES * (entry % 2)


def pack(c: CSR) -> tuple[Tensor, Tensor, Tensor]:
    """(values, col_indices, crow_indices) of the layout, on the weight's device."""
    N, K = c.shape
    S, R = sizes(N, K)
    P = STRIP * R
    lengths = pad(c.crow_indices.long().diff(), (0, P - N))
    rows = lengths.sort(descending=True, stable=True).indices

    columns = c.col_indices.long()
    place = rows.argsort().repeat_interleave(lengths)
    key, order = ((columns // SLICE * P + place) * CLASSES + columns % CLASSES).sort(stable=True)
    counts = key.bincount(minlength=S * P * CLASSES)
    pairs = _ceil_div(counts.view(-1, CLASSES).sum(1), PAIR)
    units, starts, tiles, unit_pairs = _units(pairs.view(S, R, STRIP))
    first_pair = _before(unit_pairs.flatten())

    key, rank = _spread(key, counts, pairs)
    row, lane = key // CLASSES, key % CLASSES % LANES
    unit = starts[row // STRIP] + rank // ROOM
    pair = first_pair[unit * STRIP + row % STRIP] + lane // 2
    entry = 2 * (rank % ROOM) + (key % CLASSES // LANES + row) % 2
    slot = (2 * pair + lane % 2) * VECTOR + entry

    local = _padding(unit_pairs).to(torch.int16)
    local.view(-1)[slot] = (columns % SLICE)[order].to(torch.int16)
    values = c.values.new_zeros((len(local), 2, VECTOR))
    values.view(-1)[slot] = c.values[order]
    if c.dtype == torch.float32:
        values = values.view(-1, 2, 2, 4).transpose(1, 2).contiguous()
    shifts = 2 * torch.arange(STRIP, device=row.device)
    maps = (((1 << unit_pairs) - 1) << shifts).sum(1)
    strips = units.sum(0)
    tables = (
        *(rows, starts, pad(strips.cumsum(0), (1, 0)), strips.count_nonzero().view(1)),
        *(first_pair[::STRIP], tiles, maps),
    )
    return values, local.view(torch.uint16), torch.cat(tables).to(torch.int32)


def unpack(values: Tensor, columns: Tensor, crow: Tensor, shape: tuple[int, int]) -> CSR:
    """What `pack` was given."""
    N, K = shape
    _, R = sizes(N, K)
    fixed = fixed_words(N, K)
    rows, *_, units = crow.long().split((*fixed, len(crow) - sum(fixed)))
    _, tiles, maps = units.view(3, -1)
    if values.dtype == torch.float32:
        values = values.transpose(1, 2)
    bits = torch.arange(2 * STRIP, device=crow.device)
    unit, bit = ((maps.unsqueeze(1) >> bits) & 1).nonzero(as_tuple=True)
    row = rows[tiles[unit] % R * STRIP + bit // 2]
    local = columns.view(torch.int16).long()
    column = (tiles[unit] // R * SLICE).view(-1, 1, 1) + local
    key = (row.view(-1, 1, 1) * K + column)[local < SLICE]
    key, order = key.sort()
    lengths = (key // K).bincount(minlength=N)
    return CSR(
        values=values.reshape(local.shape)[local < SLICE][order],
        col_indices=(key % K).to(torch.int32).to(column_type(K)),
        crow_indices=pad(lengths.cumsum(0), (1, 0)).to(row_pointer_type(len(key))),
        shape=shape,
    )
