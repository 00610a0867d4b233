import pytest
import torch
from structured_models import FAMILIES, logits, make, reloaded, state, tokens, untouched

import prunekern
from prunekern.structured.calibration import LayerInputs
from prunekern.structured.compensate import least_squares


@pytest.mark.parametrize("family", FAMILIES)
def test_muted_channels_can_go_and_the_rest_reloads(family, tmp_path):
    model, ids = make(family), tokens()
    gone = {i: torch.randperm(160)[:50].tolist() for i in range(3)}
    with torch.no_grad():
        for i, channels in gone.items():
            model.model.layers[i].mlp.down_proj.weight[:, channels] = 0
    expected = logits(model, ids)
    prunekern.remove_channels(model, channels=gone)
    smaller = logits(model, ids)
    torch.testing.assert_close(smaller, expected, atol=1e-4, rtol=1e-4)
    assert model.config.intermediate_size == 110
    assert torch.equal(logits(reloaded(model, tmp_path), ids), smaller)


@pytest.mark.parametrize(("fraction", "kept"), [(0.2, 128), (0.5, 64), (0.4, 96)])
def test_fraction_rounds_to_a_multiple(fraction, kept):
    model = make("llama")
    report = prunekern.remove_channels(model, fraction)
    assert model.config.intermediate_size == kept == model.model.layers[0].mlp.intermediate_size
    assert report.parts[0].after == f"{kept} channels"
    assert report.parameters_before - report.parameters_after == 3 * 3 * 96 * (160 - kept)


def test_n_is_exact_and_multiple_is_the_users():
    model = make("llama")
    prunekern.remove_channels(model, n=3)
    assert model.config.intermediate_size == 157
    prunekern.remove_channels(model, 0.5, multiple=1)
    assert model.config.intermediate_size == 78


@pytest.mark.parametrize("by", ["magnitude", "activation", "gradient"])
def test_least_channels_go(by):
    model, ids = make("llama"), tokens()
    least = torch.randperm(160)[:40]
    mask = torch.ones(160, dtype=torch.bool)
    mask[least] = False
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[least] *= 0.05
            layer.mlp.down_proj.weight[:, least] *= 1e-4
    expected = [layer.mlp.up_proj.weight[mask] for layer in model.model.layers]
    report = prunekern.remove_channels(model, n=40, by=by, calibration=ids)
    for layer, old in zip(model.model.layers, expected, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, old)
    assert all(part.energy_kept > 0.99 for part in report.parts)


def test_activation_score_is_the_energy_a_channel_adds():
    """Against x_j W_j written out in float64: not the square root, not the weight alone."""
    model, ids = make("llama"), tokens()
    mlp = model.model.layers[0].mlp
    seen = []
    handle = mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    logits(model, ids)
    handle.remove()
    x, w = seen[0].flatten(0, 1).double(), mlp.down_proj.weight.double()
    added = torch.stack([torch.outer(x[:, j], w[:, j]).square().sum() for j in range(160)])
    stays = added.argsort(descending=True)[:100].sort().values
    expected = mlp.gate_proj.weight[stays]
    prunekern.remove_channels(model, n=60, by="activation", calibration=ids)
    assert torch.equal(mlp.gate_proj.weight, expected)


def test_layers_after_the_first_see_what_is_left():
    """Statistics of layer 1 are those behind the smaller layer 0."""
    model, ids = make("llama"), tokens()
    twin = make("llama")
    twin.load_state_dict(model.state_dict())
    prunekern.remove_channels(model, n=80, by="activation", calibration=ids)
    # The same in two calls that name what goes, and one that scores layer 1 by itself.
    first = twin.model.layers[0].mlp
    rows = {tuple(row.tolist()): i for i, row in enumerate(first.up_proj.weight)}
    stay = {rows[tuple(row.tolist())] for row in model.model.layers[0].mlp.up_proj.weight}
    prunekern.remove_channels(twin, channels={0: [i for i in range(160) if i not in stay]})
    moments = LayerInputs(twin, [ids])
    moments.hidden = moments.run(twin.model.layers[0], 0)
    mlp = twin.model.layers[1].mlp
    square = moments.moments(twin.model.layers[1], 1, "mlp.down_proj", False).square
    scores = square * mlp.down_proj.weight.double().square().sum(0)
    stays = scores.argsort(descending=True)[:80].sort().values
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, mlp.up_proj.weight[stays])


@pytest.mark.parametrize("bias", [False, True])
def test_least_squares_is_the_ridge_solution_written_out(bias):
    """Against torch.linalg.lstsq on the stacked system [x_k; sqrt(ridge) I], float64."""
    from prunekern.structured.calibration import Moments

    x = torch.randn(200, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64) + 0.5
    w, b = torch.randn(5, 12), torch.randn(5) if bias else None
    keep = torch.tensor([0, 2, 3, 7, 8, 11])
    moments = Moments(x.mean(0), x.square().mean(0), x.t() @ x / 200)
    weight, new_bias = least_squares(w, b, moments, keep)
    centred = x - x.mean(0) if bias else x
    kept = centred[:, keep]
    ridge = 0.01 * (kept.square().mean(0)).mean()
    wd = w.double()
    stacked = torch.cat([kept / 200**0.5, ridge.sqrt() * torch.eye(6, dtype=torch.float64)])
    target = torch.cat([centred @ wd.t() / 200**0.5, ridge.sqrt() * wd[:, keep].t()])
    expected = torch.linalg.lstsq(stacked, target).solution.t()
    torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-5)
    if bias:
        mean = (x @ wd.t() + b.double()).mean(0)
        ours = (x[:, keep] @ weight.double().t() + new_bias.double()).mean(0)
        torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-5)
    else:
        assert new_bias is None


@pytest.mark.parametrize("family", ["llama", "llama_bias"])
def test_least_squares_brings_logits_nearer(family):
    errors = {}
    ids = tokens(8, 64)
    torch.manual_seed(3)
    dense = make(family)
    expected = logits(dense, ids)
    for compensate in ("none", "bias", "least_squares"):
        if compensate == "bias" and family == "llama":
            continue
        model = make(family)
        model.load_state_dict(dense.state_dict())
        prunekern.remove_channels(
            model, 0.4, by="activation", calibration=ids, compensate=compensate
        )
        errors[compensate] = (logits(model, ids) - expected).norm()
    assert errors["least_squares"] < 0.95 * errors["none"]
    if family == "llama_bias":
        assert errors["least_squares"] < errors["bias"] < errors["none"]


def test_dead_channels_are_no_trouble_for_least_squares():
    model, ids = make("llama"), tokens()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.zero_()
    expected = logits(model, ids)
    prunekern.remove_channels(model, 0.4, calibration=ids, compensate="least_squares")
    torch.testing.assert_close(logits(model, ids), expected)


def test_different_counts_are_noted_and_plain_reload_is_loud(tmp_path):
    model = make("llama")
    prunekern.remove_channels(model, channels={1: range(32)})
    assert model.config.prunekern == {"channels": {"0": 160, "1": 128, "2": 160}}
    prunekern.remove_heads(model, heads={0: [0, 1]})
    assert set(model.config.prunekern) == {"channels", "heads"}
    with pytest.raises(RuntimeError, match="ismatch"):
        reloaded(model, tmp_path)


def test_prunes_to_two_four_and_swaps_afterwards():
    model, ids = make("llama"), tokens()
    prunekern.remove_heads(model, n=2)
    prunekern.remove_channels(model, 0.4)
    prunekern.prune(model, "2:4", targets="all-linear")
    expected = logits(model, ids)
    report = prunekern.replace_linears(model, "2:4", targets="all-linear", prune=False)
    assert len(report.replaced) == 21
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"remove_channels: .*restore_linears\(model\) first"):
        prunekern.remove_channels(model, 0.4)
    prunekern.restore_linears(model)
    prunekern.remove_channels(model, 0.4)
    assert model.config.intermediate_size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of fraction, n, channels, got none"),
        ({"fraction": 0.05}, "in steps of 32, got fraction=0.05, which keeps 160 of 160"),
        ({"fraction": 0.95}, "which keeps 0 of 160"),
        ({"fraction": float("nan")}, "a fraction in"),
        ({"n": 160}, "must lose from 1 to 159 of 160, got n=160"),
        ({"n": 2.5}, "got n=2.5"),
        ({"fraction": 0.4, "multiple": 0}, "multiple must be at least 1, got 0"),
        ({"channels": {0: []}}, "layer 0 must be different indices"),
        ({"channels": {}}, "by layer, 0 to 2"),
        ({"fraction": 0.4, "compensate": "least_squares"}, "calibration must be token ids"),
    ],
)
def test_bad_arguments_leave_the_model_alone(arguments, message):
    model = make("llama")
    before, config = state(model), model.config.to_dict()
    with pytest.raises(ValueError, match=f"remove_channels: .*{message}"):
        prunekern.remove_channels(model, **arguments)
    assert untouched(model, before, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    model = make("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(
        ValueError, match=r"layers\.2\.mlp\.up_proj must have finite weights, got 1"
    ):
        prunekern.remove_channels(model, 0.4)
