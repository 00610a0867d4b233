"""SparseGPT that rounds while it prunes: what is stored is what was rounded, and better for it."""

import pytest
import torch
from conftest import tiny_llama

import prunekern
from prunekern.formats import DTYPES, compress, dequantize
from prunekern.pruning.sparsegpt import Rounding, inverse_factor, sparsegpt_prune

GROUPS = (32, 64, 128, 256, -1)


def _problem(N=48, K=320, tokens=2000):
    # Inputs that tell much of one another, as those of a model do.
    x = torch.randn(tokens, K // 8) @ torch.randn(K // 8, K) + 0.5 * torch.randn(tokens, K)
    return torch.randn(N, K) / K**0.5, x, inverse_factor(x.t() @ x / tokens, 0.01, "layer")


def _error(weight, rounded, x):
    return ((x @ (weight - rounded).t()).square().mean() / (x @ weight.t()).square().mean()).item()


@pytest.mark.parametrize("group_size", GROUPS)
def test_joint_rounding_beats_rounding_after(group_size):
    weight, x, (factor, dead) = _problem()
    pruned = sparsegpt_prune(weight, factor, dead, (2, 4), 0.5)
    after = dequantize(compress(pruned, "2:4-int4", group_size))
    rounding = Rounding(4, group_size, torch.float32)
    joint = sparsegpt_prune(weight, factor, dead, (2, 4), 0.5, rounding=rounding)
    errors = [_error(weight, w, x) for w in (pruned, joint, after)]
    # What rounding adds to what pruning costs.
    assert 0 < errors[1] - errors[0] < 0.8 * (errors[2] - errors[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("group_size", GROUPS)
def test_what_is_stored_is_what_was_rounded(group_size, dtype):
    weight, _, (factor, dead) = _problem()
    rounding = Rounding(4, group_size, dtype)
    joint = sparsegpt_prune(weight, factor, dead, (2, 4), 0.5, rounding=rounding)
    c = compress(joint.to(dtype), "2:4-int4", group_size)
    # In the model's dtype the weight is rounded once more, by half a unit; a number that moved
    # would change it by an eighth at least.
    torch.testing.assert_close(
        dequantize(c),
        joint,
        rtol=1.5 * torch.finfo(dtype).eps,
        atol=0 if dtype != torch.float16 else 1e-6,
    )


def test_a_model_pruned_so_is_stored_as_it_is():
    model = tiny_llama()
    prunekern.prune(
        model, "2:4", "sparsegpt", targets="all-linear", values="int4", group_size=32,
        calibration=torch.randint(0, 128, (8, 64)),
    )  # fmt: skip
    report = prunekern.replace_linears(
        model, "2:4-int4", targets="all-linear", prune=False, group_size=32
    )
    assert max(layer.rounding for layer in report.layers) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "int8"}, "values must be \"int4\" or None, got 'int8'"),
        ({"values": "int4", "pattern": "1:4"}, "values must go with sparsegpt and 2:4"),
        ({"values": "int4", "method": "wanda"}, "values must go with sparsegpt and 2:4"),
        ({"values": "int4", "group_size": 48}, "group_size must be a power of two"),
        ({"group_size": 64}, "group_size must be left out without values"),
    ],
)
def test_what_can_not_be_is_refused(options, message):
    arguments = {"pattern": "2:4", "method": "sparsegpt", **options}
    with pytest.raises(ValueError, match=message):
        prunekern.prune(tiny_llama(), calibration=torch.zeros(1, 8, dtype=torch.int64), **arguments)
