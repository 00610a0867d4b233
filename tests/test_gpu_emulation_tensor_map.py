"""Tensor maps: what is refused, and boxes of every type, swizzle and place against numpy."""

import re

import numpy as np
import pytest
import torch
from gpu_emulation import EmulationError, Module, TensorMap

pytestmark = pytest.mark.gpu_emulation


@pytest.mark.parametrize(
    "shape, dtype, box, swizzle, sentence",
    [
        ((8, 8), np.bool_, (8, 8), 0, "a tensor map of bool: one of uint8, uint16"),
        ((8, 8), np.float16, (8,), 0, "box (8,) and shape (8, 8): one to five dimensions"),
        ((), np.float16, (), 0, "box () and shape (): one to five dimensions"),
        ((1,) * 5 + (8,), np.float16, (1,) * 5 + (8,), 0, "one to five dimensions"),
        ((0, 8), np.float16, (8, 8), 0, "shape (0, 8): no dimension may be 0"),
        ((8, 8), np.float16, (8, 8), 16, "a swizzle of 16 bytes: 0, 32, 64 or 128"),
        ((8, 9), np.float16, (8, 8), 0, "strides [18] bytes: TMA needs multiples of 16"),
        ((8, 8), np.float16, (0, 8), 0, "box (0, 8): 1 to 256 elements a dimension"),
        ((8, 8), np.float16, (257, 8), 0, "box (257, 8): 1 to 256 elements a dimension"),
        ((8, 8), np.float16, (8, 4), 0, "box (8, 4): 1 to 256 elements a dimension"),
        ((8, 64), np.float16, (8, 32), 128, "of 128 bytes if swizzled"),
    ],
)
def test_a_map_that_is_refused(shape, dtype, box, swizzle, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        TensorMap(np.zeros(shape, dtype), box, swizzle)


def copy_of(rank):
    """PTX: loads the box of map `from` at its corner and stores it to map `to` at another."""
    corner = ", ".join(f"%from{i}" for i in range(rank))
    other = ", ".join(f"%to{i}" for i in range(rank))
    parameters = [".param .align 64 .b8 from[128]", ".param .align 64 .b8 to[128]"]
    parameters += [f".param .u32 {way}_{i}" for way in ("from", "to") for i in range(rank)]
    loads = [f"ld.param.u32 %{way}{i}, [{way}_{i}];" for way in ("from", "to") for i in range(rank)]
    return f"""\
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k({", ".join([*parameters, ".param .u32 bytes"])})
{{
.reg .b32 %from<5>, %to<5>, %bytes;
.reg .b64 %map<2>;
.reg .pred %done;
.shared .align 1024 .b8 tile[16384];
.shared .align 8 .b64 full;
{" ".join(loads)} ld.param.u32 %bytes, [bytes];
mov.b64 %map0, from; cvta.param.u64 %map0, %map0;
mov.b64 %map1, to; cvta.param.u64 %map1, %map1;
mbarrier.init.shared::cta.b64 [full], 1;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], %bytes;
cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes \
[tile], [%map0, {{{corner}}}], [full];
again: mbarrier.try_wait.parity.shared::cta.b64 %done, [full], 0;
@!%done bra again;
cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%map1, {{{other}}}], [tile];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
ret;
}}
"""


def launch(source, target, box, swizzle, corner, place):
    """Corners and boxes in the buffer's order of dimensions, as TensorMap's."""
    maps = [TensorMap(buffer, box, swizzle) for buffer in (source, target)]
    size = int(np.prod(box)) * source.itemsize
    module = Module(copy_of(len(box)))
    args = [*maps, *corner[::-1], *place[::-1], size]
    return module.launch("k", 1, 1, args, names=["from", "to", *map(str, args[2:])])


def moved(source, target, box, corner, place):
    """What a copy through a box leaves in the target: zeros from outside, nothing to outside."""
    out = target.copy()
    for index in np.ndindex(*box):
        read = tuple(map(sum, zip(corner, index, strict=True)))
        written = tuple(map(sum, zip(place, index, strict=True)))
        inside = [
            all(0 <= i < n for i, n in zip(at, tensor.shape, strict=True))
            for at, tensor in ((read, source), (written, target))
        ]
        if inside[1]:
            out[written] = source[read] if inside[0] else 0
    return out


@pytest.mark.parametrize("corner, place", [((0,), (0,)), ((-3,), (2,)), ((90,), (-5,))])
def test_a_box_of_one_dimension(corner, place):
    source, target = np.arange(100, dtype=np.int32), np.full(60, -1, np.int32)
    expected = moved(source, target, (16,), corner, place)
    launch(source, target, (16,), 0, corner, place)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(
    "corner, place", [((0, 0), (0, 0)), ((-2, 5), (3, -1)), ((15, 70), (0, 0))]
)
def test_a_box_goes_out_as_it_came_in_whatever_the_swizzle(swizzle, corner, place):
    source = np.arange(20 * 72, dtype=np.uint16).reshape(20, 72)
    target, box = np.full((9, 80), 9999, np.uint16), (11, (swizzle or 48) // 2)
    expected = moved(source, target, box, corner, place)
    launch(source, target, box, swizzle, corner, place)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_a_box_of_more_dimensions(rank):
    rng = np.random.default_rng(rank)
    source = rng.integers(0, 99, (2, 3, 4, 5, 16)[-rank:]).astype(np.float32)
    target = np.full((3, 2, 5, 4, 12)[-rank:], -1, np.float32)
    box, corner, place = (
        (2, 2, 3, 3, 8)[-rank:],
        (1, -1, 2, 3, 12)[-rank:],
        (0, 1, -1, 2, 6)[-rank:],
    )
    expected = moved(source, target, box, corner, place)
    launch(source, target, box, 0, corner, place)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64", "uint16"])
def test_a_box_of_each_width(dtype):
    source = np.arange(6 * 32).reshape(6, 32).astype(dtype)
    target = np.zeros_like(source)
    launch(source, target, (6, 32), 0, (0, 0), (0, 0))
    np.testing.assert_array_equal(target, source)


def test_a_map_of_a_torch_tensor():
    source = torch.arange(64, dtype=torch.bfloat16).reshape(4, 16)
    target = torch.zeros_like(source)
    launch(source, target, (4, 16), 32, (0, 0), (0, 0))
    assert torch.equal(source, target)


def test_a_map_where_the_parameter_is_none(emulate):
    module = emulate('extern "C" __global__ void k(float* out) { out[0] = 1; }\n')
    with pytest.raises(TypeError, match=r"argument 0 of k is a tensor map, the parameter a \.u64"):
        module.launch("k", 1, 1, [TensorMap(np.zeros((4, 4), np.float32), (4, 4))])


def test_a_map_of_other_dimensions_than_the_instruction():
    x = np.zeros((4, 16), np.float16)
    with pytest.raises(EmulationError, match=r"^the tensor map has 2 dimensions"):
        Module(copy_of(3)).launch("k", 1, 1, [*[TensorMap(x, (4, 16))] * 2, *[0] * 6, 128])
