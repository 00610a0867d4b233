import pytest
import torch
from structured_models import FAMILIES, logits, make, reloaded, state, tokens, untouched

import prunekern


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_pass_their_input_on_can_go(family, tmp_path):
    model, ids = make(family), tokens()
    with torch.no_grad():
        for linear in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
    expected = logits(model, ids)
    report = prunekern.remove_layers(model, n=1, calibration=ids)
    assert [part.layer for part in report.parts] == [1]
    assert torch.equal(logits(model, ids), expected)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    assert model.config.num_hidden_layers == 2
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again, ids), expected)
    made = model.generate(ids, max_new_tokens=6, do_sample=False)
    for _ in range(6):
        ids = torch.cat([ids, logits(again, ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, ids)


def test_similarity_and_block_against_cosines_written_out():
    ids = tokens(3, 10)
    for by in ("similarity", "block"):
        model = make("llama", num_hidden_layers=6)
        with torch.no_grad():
            # The last of them is behind the final norm, but for an identity.
            norm, model.model.norm = model.model.norm, torch.nn.Identity()
            hidden = [h.double() for h in model(ids, output_hidden_states=True).hidden_states]
            model.model.norm = norm

        def cosine(a, b):
            return ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean().item()

        if by == "similarity":
            alike = [cosine(hidden[i], hidden[i + 1]) for i in range(6)]
            expected = sorted(sorted(range(6), key=lambda i: -alike[i])[:2])
        else:
            alike = [cosine(hidden[i], hidden[i + 2]) for i in range(5)]
            first = max(range(5), key=lambda i: alike[i])
            expected = [first, first + 1]
        report = prunekern.remove_layers(model, n=2, by=by, calibration=ids)
        assert [part.layer for part in report.parts] == expected


def test_layer_types_and_notes_follow_the_layers(tmp_path):
    model = make("qwen2", layer_types=["full_attention", "sliding_attention", "full_attention"],
                 use_sliding_window=True, sliding_window=4)  # fmt: skip
    ids = tokens()
    prunekern.remove_heads(model, heads={2: [0, 1]})
    prunekern.remove_layers(model, layers=[0])
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.prunekern == {"heads": {"0": [8, 4], "1": [6, 3]}}
    assert logits(model, ids).isfinite().all()
    prunekern.remove_layers(model, layers=[1])
    assert not hasattr(model.config, "prunekern")
    assert torch.equal(logits(reloaded(model, tmp_path), ids), logits(model, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_channels_that_are_zero_can_go(family, tmp_path):
    """Nothing writes them: all that changes is over how many channels a norm takes its mean."""
    # A norm's epsilon weighs more where the mean is over fewer channels; here it is nothing.
    model, ids = make(family, rms_norm_eps=1e-12), tokens()
    gone = torch.randperm(96)[:32]
    stays = [j for j in range(96) if j not in gone]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, gone] = 0
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight[gone] = 0
                if linear.bias is not None:
                    linear.bias[gone] = 0
            for linear in (
                layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj,
                layer.mlp.gate_proj, layer.mlp.up_proj,
            ):  # fmt: skip
                linear.weight[:, gone] *= 1e-3  # read, but zero: only the score counts them
        model.lm_head.weight[:, gone] *= 1e-3
    expected = logits(model, ids)
    rows = model.model.layers[1].mlp.down_proj.weight[stays].clone()
    prunekern.remove_hidden(model, 0.33)
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, rows)
    smaller = logits(model, ids)
    torch.testing.assert_close(smaller, expected, atol=1e-4, rtol=1e-4)
    assert model.config.hidden_size == 64 == model.model.embed_tokens.embedding_dim
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (family == "llama_tied")
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again, ids), smaller)
    assert torch.equal(
        model.generate(ids, max_new_tokens=4, do_sample=False),
        again.generate(ids, max_new_tokens=4, do_sample=False),
    )


def test_norms_are_rescaled_by_what_calibration_shows():
    model, ids = make("llama"), tokens(4, 20)
    hidden = []
    norm = model.model.layers[0].input_layernorm
    handle = norm.register_forward_pre_hook(lambda _m, args: hidden.append(args[0].double()))
    logits(model, ids)
    handle.remove()
    old_weight, embedding = norm.weight.clone(), model.model.embed_tokens.weight.clone()
    prunekern.remove_hidden(model, n=30, by="activation", calibration=ids)
    columns = {tuple(c.tolist()): j for j, c in enumerate(embedding.t())}
    keep = [columns[tuple(c.tolist())] for c in model.model.embed_tokens.weight.t()]
    rms = hidden[0].square().mean(-1).sqrt()
    rms_kept = hidden[0][..., keep].square().mean(-1).sqrt()
    expected = old_weight[keep].double() * (rms_kept / rms).mean()
    torch.testing.assert_close(norm.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert len(keep) == 66 and keep == sorted(keep)


def test_calibration_helps_hidden_removal():
    ids = tokens(4, 32)
    dense = make("llama")
    expected = logits(dense, ids)
    errors = []
    for calibration in (None, ids):
        model = make("llama")
        model.load_state_dict(dense.state_dict())
        prunekern.remove_hidden(model, 0.33, calibration=calibration)
        errors.append((logits(model, ids) - expected).norm())
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("remove_layers", {}, "exactly one of n, layers, got none"),
        ("remove_layers", {"n": 3}, "must lose from 1 to 2 of 3, got n=3"),
        ("remove_layers", {"n": 1}, "calibration must be token ids"),
        ("remove_layers", {"layers": [3]}, "different indices from 0 to 2"),
        ("remove_layers", {"layers": [0, 1, 2]}, "not all of them"),
        ("remove_layers", {"n": 1, "by": "angle"}, "by must be one of similarity, block"),
        ("remove_hidden", {}, "exactly one of fraction, n, got none"),
        ("remove_hidden", {"fraction": 0.1}, "keeps 96 of 96"),
        ("remove_hidden", {"fraction": 0.33, "by": "gradient"}, "by must be one of magnitude, act"),
        ("remove_hidden", {"fraction": 0.33, "by": "activation"}, "calibration must be token ids"),
        ("remove_hidden", {"n": 4, "multiple": -1}, "multiple must be at least 1"),
    ],
)
def test_bad_arguments_leave_the_model_alone(function, arguments, message):
    model = make("llama")
    before, config = state(model), model.config.to_dict()
    with pytest.raises(ValueError, match=f"{function}: .*{message}"):
        getattr(prunekern, function)(model, **arguments)
    assert untouched(model, before, config)


@pytest.mark.parametrize("function", ["remove_layers", "remove_hidden"])
def test_activations_that_are_no_numbers_are_refused(function):
    model = make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 5] = float("inf")
    before, config = state(model), model.config.to_dict()
    arguments = {"n": 1} if function == "remove_layers" else {"n": 32, "by": "activation"}
    with pytest.raises(ValueError, match=f"{function}: .* finite"):
        getattr(prunekern, function)(model, calibration=tokens(), **arguments)
    assert untouched(model, before, config)


def test_models_spread_over_devices_are_refused():
    accelerate = pytest.importorskip("accelerate")
    model = make("llama")
    accelerate.hooks.add_hook_to_module(model.model.layers[0], accelerate.hooks.ModelHook())
    with pytest.raises(ValueError, match=r"got model\.layers\.0 moved about by accelerate"):
        prunekern.remove_layers(model, layers=[1])


def test_width_that_no_config_would_take_is_refused():
    model = make("llama_bias")
    before, config = state(model), model.config.to_dict()
    with pytest.raises(ValueError, match="multiples of the 8 heads, or LlamaConfig refuses"):
        prunekern.remove_hidden(model, n=20)
    assert untouched(model, before, config)
    model = make("llama")
    assert "MistralForCausalLM" in prunekern.remove_hidden(model, n=20).note


def test_everything_at_once_reloads(tmp_path):
    model, ids = make("qwen3"), tokens()
    prunekern.remove_layers(model, layers=[1])
    prunekern.remove_heads(model, n=2, by="gradient", calibration=[ids])
    prunekern.remove_channels(model, 0.4, calibration=ids, compensate="least_squares")
    prunekern.remove_hidden(model, 0.33, by="activation", calibration=ids)
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again, ids), logits(model, ids))
