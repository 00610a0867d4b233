import pytest
import torch
import torch.nn.utils.prune
from structured_models import FAMILIES, logits, make, reloaded, state, tokens, untouched

import prunekern
from prunekern.structured.model import head_counts


def mute(model, heads):
    """Zero columns of o: what these heads find out reaches nobody."""
    with torch.no_grad():
        for i, gone in heads.items():
            attention = model.model.layers[i].self_attn
            columns = attention.o_proj.weight.view(-1, head_counts(model.model.layers[i])[0], 16)
            columns[:, list(gone)] = 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "heads",
    [
        {0: (2, 3), 1: (0, 1), 2: (6, 7)},  # whole groups of two, another one in each layer
        {0: (0, 3, 4, 7), 1: (1, 3, 5, 6), 2: (0, 2, 4, 6)},  # one of each group
        {1: (0, 1, 2, 3)},  # two groups of one layer only
    ],
    ids=["groups", "queries", "one layer"],
)
def test_muted_heads_can_go(family, heads):
    model, ids = make(family), tokens()
    mute(model, heads)
    expected = logits(model, ids)
    prunekern.remove_heads(model, heads=heads)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-4)
    for i, gone in heads.items():
        attention = model.model.layers[i].self_attn
        queries, key_values = head_counts(model.model.layers[i])
        assert queries == 8 - len(gone)
        assert attention.num_key_value_groups * key_values == queries
        assert attention.o_proj.in_features == attention.q_proj.out_features == queries * 16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["group", "query"])
def test_uniform_removal_reloads_plainly_and_generates(family, unit, tmp_path):
    model, ids = make(family), tokens()
    report = prunekern.remove_heads(model, n=4, unit=unit)
    expected = logits(model, ids)
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again, ids), expected)
    assert not hasattr(again.config, "prunekern")
    assert again.config.num_attention_heads == 4
    made = again.generate(ids, max_new_tokens=8, do_sample=False)
    for _ in range(8):  # without a cache, the whole prefix anew for each token
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, ids)
    static = model.generate(
        tokens(), max_new_tokens=4, do_sample=False, cache_implementation="static"
    )
    assert static.shape == (2, 16)


def test_head_dim_that_followed_from_width_and_heads_becomes_explicit(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=128, hidden_size=96, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model, ids = Qwen2ForCausalLM(config).eval(), tokens()
    prunekern.remove_heads(model, n=2)
    again = reloaded(model, tmp_path)
    assert again.config.head_dim == 12
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_32_heads_to_24_at_a_width_that_24_does_not_divide(tmp_path):
    model, ids = (
        make("llama", hidden_size=128, num_attention_heads=32, num_key_value_heads=32),
        tokens(),
    )
    report = prunekern.remove_heads(model, fraction=0.25)
    expected = logits(model, ids)
    assert head_counts(model.model.layers[0]) == (24, 24)
    assert "MistralForCausalLM" in report.note and "MistralForCausalLM" in str(report)
    again = reloaded(model, tmp_path)
    assert type(model) is type(again) and again.config.num_attention_heads == 24
    assert torch.equal(logits(again, ids), expected)
    assert len(model(ids, output_hidden_states=True).hidden_states) == 4
    assert torch.equal(
        model.generate(ids, max_new_tokens=5, do_sample=False),
        again.generate(ids, max_new_tokens=5, do_sample=False),
    )


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_becoming_mistral_changes_no_bit(family, tmp_path):
    from prunekern.structured.config import _become_mistral

    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    model, ids = make(family, rope_parameters=scaled), tokens(length=100)
    expected = logits(model, ids)
    _become_mistral(model)
    assert type(model).__name__ == "MistralForCausalLM"
    assert not any("Llama" in type(m).__name__ for m in model.modules())
    assert torch.equal(logits(model, ids), expected)
    again = reloaded(model, tmp_path)
    assert type(again) is type(model) and torch.equal(logits(again, ids), expected)


def test_biases_keep_llama_and_note_the_counts():
    model = make("llama_bias")
    report = prunekern.remove_heads(model, n=2, unit="group")  # 96 is a multiple of 6
    assert report.note == "" and model.config.num_attention_heads == 6
    model = make("llama_bias", hidden_size=64)
    report = prunekern.remove_heads(model, n=2)
    assert "noted in config.prunekern" in report.note
    assert model.config.prunekern == {"heads": {str(i): [6, 3] for i in range(3)}}
    assert model.config.num_attention_heads == 8


def test_counts_that_differ_are_noted_and_survive_saving(tmp_path):
    from transformers import AutoConfig

    model, ids = make("qwen3"), tokens()
    prunekern.remove_heads(model, heads={0: (0, 1), 2: (0, 1, 2, 3)})
    note = {"heads": {"0": [6, 3], "1": [8, 4], "2": [4, 2]}}
    assert model.config.prunekern == note
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 15)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).prunekern == note
    # Uniform again: the note goes.
    prunekern.remove_heads(model, heads={0: (0, 1), 1: (0, 1, 2, 3)})
    assert not hasattr(model.config, "prunekern")
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize("by", ["magnitude", "activation", "gradient"])
@pytest.mark.parametrize("unit", ["group", "query"])
def test_heads_that_do_nothing_go_first(by, unit):
    model, ids = make("llama"), tokens()
    gone = (4, 5) if unit == "group" else (0, 2, 5, 7)
    with torch.no_grad():
        for layer in model.model.layers:
            columns = layer.self_attn.o_proj.weight.view(96, 8, 16)
            columns[:, list(gone)] *= 1e-3
            if by == "magnitude":
                layer.self_attn.q_proj.weight.view(8, 16, 96)[list(gone)] *= 1e-3
                if unit == "group":
                    for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                        part.weight.view(4, 16, 96)[2] *= 1e-3
    rows = [layer.self_attn.q_proj.weight.clone() for layer in model.model.layers]
    stays = [h for h in range(8) if h not in gone]
    prunekern.remove_heads(model, n=len(gone), by=by, calibration=ids, unit=unit)
    for layer, old in zip(model.model.layers, rows, strict=True):
        kept = old.view(8, 16, 96)[stays].flatten(0, 1)
        assert torch.equal(layer.self_attn.q_proj.weight, kept)


def test_query_heads_of_a_group_compete_with_each_other_only():
    model = make("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[:64] *= 1e-3  # all queries of the first two groups
    old = model.model.layers[0].self_attn.k_proj.weight.clone()
    prunekern.remove_heads(model, n=4, unit="query")
    layer = model.model.layers[0]
    assert head_counts(layer) == (4, 4) and torch.equal(layer.self_attn.k_proj.weight, old)
    norms = layer.self_attn.q_proj.weight.view(4, -1).norm(dim=1)
    assert (norms[:2] < 0.1 * norms[2:].min()).all()


def test_gradient_scores_are_those_of_head_masks_added_over_batches():
    """|sum over the head's columns|, batch by batch: neither a sum of moduli nor one of sums."""
    from prunekern.structured.heads import _request
    from prunekern.structured.units import _gradient_scores

    model, batches = make("llama"), [tokens(1), tokens(1)]
    expected = torch.zeros(8)
    for ids in batches:
        mask = torch.ones(8, requires_grad=True)
        handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
            lambda _m, args, mask=mask: (args[0] * mask.repeat_interleave(16),)
        )
        expected += torch.autograd.grad(model(ids, labels=ids).loss, mask)[0].abs()
        handle.remove()
    request = _request(model.model.layers[1], whole=False, keep=4)
    scores = _gradient_scores(model, {1: request}, batches)[1]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-7)


def test_gradient_scores_are_the_derivative_of_a_head_mask():
    from prunekern.structured.calibration import column_gradients

    model, ids = make("llama").double(), tokens()
    weights = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    (columns,) = column_gradients(model, weights, [ids])
    mask = torch.ones(8, dtype=torch.float64, requires_grad=True)
    handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _m, args: (args[0] * mask.repeat_interleave(16),)
    )
    (expected,) = torch.autograd.grad(model(ids, labels=ids).loss, mask)
    handle.remove()
    torch.testing.assert_close(
        columns[1].view(8, 16).sum(1), expected.float(), rtol=1e-4, atol=1e-7
    )
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of n, fraction, heads, got none"),
        ({"n": 2, "fraction": 0.5}, "exactly one of n, fraction, heads, got n, fraction"),
        ({"n": 8}, "layer 0 must lose from 1 to 7 of 8, got n=8"),
        ({"n": 0}, "must lose from 1 to 7"),
        ({"n": 3}, "must stay in multiples of 2, got 5 left of 8"),
        ({"n": 2, "unit": "query"}, "must stay in multiples of 4, got 6 left of 8"),
        ({"n": 2, "unit": "head"}, "unit must be one of group, query, got 'head'"),
        ({"fraction": 0.05}, "in steps of 2, got fraction=0.05, which keeps 8 of 8"),
        ({"fraction": 1.0}, r"fraction in \(0, 1\), got 1.0"),
        ({"heads": {0: [0, 2]}}, "layer 0 must be whole groups of 2 or the same number"),
        ({"heads": {0: [0, 8]}}, "different indices from 0 to 7"),
        ({"heads": {0: [1, 1]}}, "different indices"),
        ({"heads": {3: [0, 1]}}, "by layer, 0 to 2, got layers"),
        ({"n": 2, "by": "wanda"}, "by must be one of magnitude, activation, gradient"),
        ({"n": 2, "by": "activation"}, "calibration must be token ids"),
        ({"n": 2, "compensate": "mean"}, "compensate must be one of none, bias, least_squares"),
        ({"n": 2, "compensate": "bias"}, "must find a bias in layers.0.self_attn.o_proj, got none"),
        ({"n": 2, "by": "gradient", "calibration": []}, "at least one batch"),
        (
            {"n": 2, "by": "gradient", "calibration": [torch.full((1, 4), 128)]},
            "token ids from 0 to 127, got 128 to 128",
        ),
        ({"n": 2, "by": "gradient", "calibration": [torch.zeros(4)]}, r"got torch.float32 \[4\]"),
    ],
)  # fmt: skip
def test_bad_arguments_leave_the_model_alone(arguments, message):
    model = make("llama")
    before, config = state(model), model.config.to_dict()
    with pytest.raises(ValueError, match=f"remove_heads: .*{message}"):
        prunekern.remove_heads(model, **arguments)
    assert untouched(model, before, config)


def test_failure_in_a_late_layer_leaves_the_model_alone():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")
    before, config = state(model), model.config.to_dict()
    with pytest.raises(ValueError, match="layer 1 must have finite scores"):
        prunekern.remove_heads(model, n=2, by="activation", calibration=tokens())
    del before["model.layers.1.input_layernorm.weight"]
    now = model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    assert model.config.to_dict() == config


def test_models_that_are_refused():
    model = make("llama")
    prunekern.prune(model, "2:4")
    prunekern.replace_linears(model, "2:4")
    with pytest.raises(ValueError, match="restore_linears"):
        prunekern.remove_heads(model, n=2)
    model = make("llama")
    with pytest.raises(ValueError, match=r"causal language model of transformers.*got LlamaModel"):
        prunekern.remove_heads(model.model, n=2)
    with pytest.raises(ValueError, match="got Linear"):
        prunekern.remove_heads(torch.nn.Linear(4, 4), n=2)
    torch.nn.utils.prune.l1_unstructured(model.model.layers[1].mlp.up_proj, "weight", 0.5)
    with pytest.raises(ValueError, match=r"masked by torch\.nn\.utils\.prune"):
        prunekern.remove_heads(model, n=2)


def test_report_counts():
    model = make("llama")
    report = prunekern.remove_heads(model, n=2)
    part = report.parts[0]
    # q and o lose 2 heads of 16 x 96, k and v one.
    assert part.parameters_before - part.parameters_after == 6 * 16 * 96
    assert report.parameters_before - report.parameters_after == 3 * 6 * 16 * 96
    assert (part.before, part.after) == ("8 heads, 4 key/value", "6 heads, 3 key/value")
    assert 0.75 < part.energy_kept < 0.85  # the least of four groups goes
    assert "layer   2" in str(report)


def test_parameters_keep_their_settings_and_dtype():
    model = make("llama").to(torch.bfloat16).train()
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight.requires_grad_(False)
    prunekern.remove_heads(
        model, n=2, by="activation", calibration=tokens(), compensate="least_squares"
    )
    assert model.training and layer.self_attn.o_proj.weight.dtype is torch.bfloat16
    assert not layer.self_attn.o_proj.weight.requires_grad
    assert layer.self_attn.q_proj.weight.requires_grad
