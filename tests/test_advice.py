"""Advice on a tiny model: what is measured is right, promises hold, nothing is left behind.

Layers of a few kilobytes are as fast in any storage, so that their times are made up here.
"""

import json
import math
import random

import pytest
import torch
from test_cli import invoke, load, sparse
from torch import nn

import prunekern
from prunekern.advice import advise as advising
from prunekern.advice import sensitivity, speed, whole_model
from prunekern.advice.candidates import Candidate, parse
from prunekern.advice.sensitivity import sensitivities, spread
from prunekern.advice.speed import Stored, Times, chip_of, modelled, stored_of
from prunekern.advice.texts import calibration_of, parts_of
from prunekern.compare.expected import product
from prunekern.compare.roofline import CHIPS
from prunekern.timing import DENSE_STORED

MODULE = "prunekern.advice.advise"
UP = "model.layers.1.mlp.up_proj"
HALF, MOST = parse(["50%", "90%"])


@pytest.fixture
def text(tmp_path):
    """Sentences in no order: enough for six windows of 512 characters."""
    rng = random.Random(0)
    words = "the a cat dog tree sees eats finds under over quickly small old".split()
    path = tmp_path / "words.txt"
    path.write_text(" ".join(rng.choice(words) for _ in range(900)))
    return path


TRAINED = {}  # the weights, made once: of random ones pruning makes better predictions


@pytest.fixture
def trained(folder, text):
    """The tiny model with what it learned of the text, in a folder."""
    from transformers import AutoTokenizer

    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    if not TRAINED:
        torch.manual_seed(0)
        ids = torch.tensor(tokenizer(text.read_text())["input_ids"])[: 32 * 128].view(-1, 128)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(60):
            batch = ids[step * 4 % len(ids) :][:4]
            model(batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        TRAINED.update(state(model))
    model.load_state_dict(TRAINED)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(trained):
    from transformers import AutoTokenizer

    return load(trained), AutoTokenizer.from_pretrained(trained)


def made_up(factors):
    """Times of which a storage takes dense's divided by its factor at (storage, tokens)."""

    def measured(shapes, stored, tokens, dtype, device, told):
        return Times(
            {
                (shape, M): {
                    DENSE_STORED: shape[0] * shape[1] * 1e-9,
                    **{one: shape[0] * shape[1] * 1e-9 / factors(one, M) for one in stored},
                }
                for shape in shapes
                for M in tokens
            }
        )

    return measured


@pytest.fixture
def twice_as_fast(monkeypatch):
    """Each storage is as fast as it has few weights; at 512 tokens csr is slow."""
    factors = lambda one, M: 0.1 if (one.kernel, M) == ("csr", 512) else 1 / (1 - one.sparsity)  # noqa: E731
    monkeypatch.setattr(speed, "measured", made_up(factors))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


def windows_of(loaded, text):
    return parts_of(*loaded, text, 4)


# ------------------------------------------------------------------------------- sensitivity


def test_a_layer_alone_is_measured_as_a_whole_forward_pass_would(loaded, text):
    model, _ = loaded
    parts = windows_of(loaded, text)
    before = state(model)
    found = sensitivities(model, {UP: (HALF, MOST)}, "wanda", parts.calibration, parts.compared)
    assert same(model, before)
    with torch.no_grad():
        dense = model(parts.compared).logits.log_softmax(-1)
        prunekern.prune(
            model, "unstructured", "wanda", 0.9, targets=UP, calibration=parts.calibration
        )
        pruned = model(parts.compared).logits.log_softmax(-1)
    tokens = parts.compared[:, 1:, None]
    divergence = (dense.exp() * (dense - pruned)).sum(-1).mean().item()
    rise = (dense - pruned)[:, :-1].gather(-1, tokens).mean().item()
    assert divergence > 1e-7
    assert found[UP][MOST].divergence == pytest.approx(divergence, rel=1e-2, abs=1e-9)
    assert found[UP][MOST].loss_rise == pytest.approx(rise, rel=1e-2, abs=1e-7)
    assert found[UP][MOST].divergence > found[UP][HALF].divergence


def test_what_comes_before_a_layer_is_not_run_again(loaded, text, monkeypatch):
    model, _ = loaded
    calls = []
    first = model.model.layers[0].mlp
    first.register_forward_hook(lambda *_: calls.append(1))
    parts = windows_of(loaded, text)
    wanted = {UP: parse(["10%", "20%", "30%", "40%", "50%"])}
    sensitivities(model, wanted, "magnitude", parts.calibration, parts.compared)
    assert len(calls) == 1
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_rounding_alone_is_taken_off(loaded, text, monkeypatch):
    model, _ = loaded
    model.to(torch.bfloat16)
    parts = windows_of(loaded, text)
    judge = sensitivity._Judge(model, model.model.layers, parts.compared)
    with torch.no_grad():
        same = judge.from_layer(0)
        assert same.divergence == pytest.approx(0, abs=2e-6) and same.loss_rise == 0
        floor = judge.rounding(1)
    assert floor > 0
    arguments = ({UP: (MOST,)}, "magnitude", parts.calibration, parts.compared)
    found = sensitivities(model, *arguments)[UP][MOST].divergence
    monkeypatch.setattr(sensitivity._Judge, "rounding", lambda *_: 0.0)
    seen = sensitivities(model, *arguments)[UP][MOST].divergence
    assert seen > floor and found == pytest.approx(seen - floor)


def test_beyond_the_limit_no_more_is_measured(loaded, text):
    model, _ = loaded
    parts = windows_of(loaded, text)
    wanted = {UP: parse(["50%", "60%", "90%"])}
    arguments = (wanted, "magnitude", parts.calibration, parts.compared)
    everything = sensitivities(model, *arguments)[UP]
    divergences = [one.divergence for one in everything.values()]
    assert divergences == sorted(divergences) and len(divergences) == 3
    limit = (divergences[0] + divergences[1]) / 2
    assert list(sensitivities(model, *arguments, limit=limit)[UP]) == [HALF]


def test_what_was_measured_is_not_measured_again(loaded, text, tmp_path, monkeypatch):
    model, _ = loaded
    parts = windows_of(loaded, text)
    folder = tmp_path / "state"
    arguments = ({UP: (HALF,)}, "wanda", parts.calibration, parts.compared)
    once = sensitivities(model, *arguments, state=folder)
    monkeypatch.setattr(sensitivity, "pruned_weight", None)
    assert sensitivities(model, *arguments, state=folder) == once
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"^advise: state must be a folder of this very run"):
        sensitivities(model, *arguments, state=folder)
    (folder / "sensitivity.json").write_text("{")
    with pytest.raises(ValueError, match=r"^advise: state must be a folder of this very run"):
        sensitivities(model, *arguments, state=folder)


def test_decoder_layers_between_two_that_are_measured_are_interpolated(llama, text, loaded):
    model = llama(num_hidden_layers=5, max_position_embeddings=1024)
    parts = windows_of(loaded, text)
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(5)]
    arguments = (dict.fromkeys(names, (HALF,)), "magnitude", parts.calibration, parts.compared)
    every = sensitivities(model, *arguments)
    some = sensitivities(model, *arguments, layers=3)
    for i in (0, 2, 4):
        assert some[names[i]] == every[names[i]] and some[names[i]][HALF].measured
    a, between, b = (some[names[i]][HALF] for i in (0, 1, 2))
    assert not between.measured
    assert between.divergence == pytest.approx(math.sqrt(a.divergence * b.divergence))
    assert spread(range(30), 16)[:3] == [0, 2, 4] and spread(range(30), 16)[-1] == 29
    assert spread([3, 5], 9) == [3, 5] and spread([3, 5, 7], 1) == [3]


def test_what_can_not_be_measured_layer_by_layer_is_refused(loaded, text):
    model, _ = loaded
    parts = windows_of(loaded, text)
    with pytest.raises(ValueError, match=r"method must be one of magnitude, wanda, ria, sparsegpt"):
        sensitivities(model, {UP: (HALF,)}, "taylor", parts.calibration, parts.compared)
    with pytest.raises(ValueError, match=r"targets must be in decoder layers .* got lm_head"):
        sensitivities(model, {"lm_head": (HALF,)}, "wanda", parts.calibration, parts.compared)


# ------------------------------------------------------------------------------------- speed


def test_each_storage_of_each_candidate_is_timed_here():
    stored = stored_of(parse(["2:4", "70%"]))
    told = []
    times = speed.measured(
        [(16, 32), (16, 32), (8, 8)], stored, [1, 65], torch.float32, torch.device("cpu"),
        told.append,
    )  # fmt: skip
    assert set(times.seconds) == {(s, M) for s in ((16, 32), (8, 8)) for M in (1, 65)}
    for own in times.seconds.values():
        assert set(own) == {DENSE_STORED, *stored}
        assert all(0 < seconds < 1 for seconds in own.values())
    assert told == [0.5, 1.0]


def test_a_chip_is_modelled_and_what_has_no_model_is_named():
    stored = (Stored("bitmask", 0.7), Stored("2:4", 0.5), Stored("2:4-int9", 0.5))
    times = modelled([(4096, 1024)], stored, [8], "H200")
    own = times.seconds[(4096, 1024), 8]
    assert own[stored[0]] == product(CHIPS["H200"], "bitmask", 0.7, 8, 4096, 1024).seconds
    assert own[DENSE_STORED] == product(CHIPS["H200"], "dense", 0, 8, 4096, 1024).seconds
    assert times.missing == ("2:4-int9",) and stored[2] not in own
    assert times.best((4096, 1024), Candidate("2:4", 0.5, "2:4-int9"), {8: 1.0}) is None
    assert chip_of("H100") == "H100 SXM" and chip_of("rtx 4090") == "RTX 4090"
    for name in ("H", "B200", ""):
        with pytest.raises(ValueError, match=r"^advise: chip must be one of A100 80G"):
            chip_of(name)


def test_the_best_storage_weighs_all_numbers_of_tokens():
    seconds = {
        ((4, 4), 1): {DENSE_STORED: 1.0, Stored("csr", 0.9): 0.1, Stored("bitmask", 0.9): 0.5},
        ((4, 4), 8): {DENSE_STORED: 10.0, Stored("csr", 0.9): 20.0, Stored("bitmask", 0.9): 9.0},
    }
    best = Times(seconds).best
    assert best((4, 4), MOST, {1: 1.0}) == ("csr", {1: 0.1})
    assert best((4, 4), MOST, {1: 0.5, 8: 0.5})[0] == "bitmask"
    assert best((4, 4), MOST, {1: 0.9, 8: 0.1})[0] == "csr"


# ------------------------------------------------------------------------------ advise, apply


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_the_promise_is_kept_by_the_model_that_apply_makes(loaded, text, twice_as_fast, method):
    model, tokenizer = loaded
    before = state(model)
    told = []
    plan = prunekern.advise(
        *(model, tokenizer, text),
        quality=0.02,
        method=method,
        windows=3,
        progress=lambda what, share: told.append((what, share)),
    )
    assert same(model, before) and not sparse(model)
    assert plan.pruned and len(plan.layers) == 14
    rise = plan.perplexity_measured / plan.perplexity_dense - 1
    assert -0.1 < rise <= 0.02
    assert all(0 <= share <= 1 for _, share in told)
    assert set(plan.speedup_predicted) == set(plan.speedup_measured) == {1, 8, 512}
    assert plan.bytes_planned < plan.bytes_dense
    held_out = windows_of(loaded, text).held_out
    assert math.exp(whole_model.loss(model, held_out)) == pytest.approx(plan.perplexity_dense)

    read = prunekern.Plan.from_json(plan.to_json())
    pruned, replaced = prunekern.apply(model, read, tokenizer, text)
    layers = {layer.name: layer for layer in plan.pruned}
    assert {n: m.kernel for n, m in sparse(model).items()} == {
        n: p.kernel for n, p in layers.items()
    }
    for row in pruned.layers:
        assert row.sparsity == pytest.approx(layers[row.name].sparsity, abs=0.02)
    assert [row.name for row in replaced.layers] == list(layers)
    after = math.exp(whole_model.loss(model, held_out))
    assert after == pytest.approx(plan.perplexity_measured, rel=1e-4)


def test_a_tighter_budget_prunes_less_and_reuses_what_was_measured(
    loaded, text, twice_as_fast, tmp_path, monkeypatch
):
    model, tokenizer = loaded
    folder = tmp_path / "state"
    options = {"method": "magnitude", "windows": 3, "state": folder, "layers": 9}
    loose = prunekern.advise(model, tokenizer, text, quality=0.2, **options)
    monkeypatch.setattr(sensitivity, "pruned_weight", None)
    tight = prunekern.advise(model, tokenizer, text, quality=0.02, **options)
    zeros = [sum(n.sparsity for n in plan.pruned) for plan in (tight, loose)]
    assert zeros[0] < zeros[1]
    assert loose.speedup_predicted[1] > tight.speedup_predicted[1]


def test_nothing_is_measured_where_nothing_is_faster(loaded, text, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(speed, "measured", made_up(lambda one, M: 1.01))
    monkeypatch.setattr(sensitivity, "pruned_weight", None)
    plan = prunekern.advise(model, tokenizer, text, windows=3)
    assert not plan.pruned and "Nothing pays here" in str(plan)
    assert plan.perplexity_measured == plan.perplexity_dense
    assert plan.speedup_predicted == {1: 1.0, 8: 1.0, 512: 1.0} and not plan.speedup_measured
    with pytest.raises(ValueError, match=r"^apply: plan must prune a layer"):
        prunekern.apply(model, plan, tokenizer, text)


def test_a_gpu_that_is_not_here_is_modelled(loaded, text):
    model, tokenizer = loaded
    plan = prunekern.advise(
        model, tokenizer, text, (1,), 0.5, "H100", ["90%"], method="magnitude", windows=3
    )
    # So small layers last as long as a launch: nothing gains, and the plan says whose times it has.
    assert plan.modelled and plan.speed_of == "H100 SXM" and not plan.speedup_measured
    assert "modelled, not measured: H100 SXM" in str(plan)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"quality": 0.0}, "quality must be a positive share"),
        ({"batches": ()}, "batches must be one or more"),
        ({"batches": (0,)}, "tokens must be a whole number of 1 or more, got 0"),
        ({"batches": {1: -1.0}}, "weights of batches must be positive"),
        ({"chip": "TPU"}, "chip must be one of"),
        ({"candidates": ["3"]}, "candidates must be"),
        ({"method": "taylor"}, "method must be one of"),
        ({"targets": "lm_head"}, "targets must be in decoder layers"),
        ({"targets": "nothing"}, "targets must match a Linear layer"),
        ({"tokenizer": None}, "tokenizer must be given"),
        ({"windows": 0}, "windows must be 1 or more"),
        ({"text": "/no/such/file"}, "text must be a readable UTF-8 file"),
    ],
)
def test_wrong_arguments_change_nothing(loaded, text, twice_as_fast, changes, said):
    model, tokenizer = loaded
    before = state(model)
    arguments = {"tokenizer": tokenizer, "text": text, "method": "magnitude"}
    with pytest.raises(ValueError, match=said):
        prunekern.advise(model, **{**arguments, **changes})
    assert same(model, before)


def test_layers_that_would_not_be_put_back_are_refused(loaded, text):
    model, tokenizer = loaded
    layer = model.get_submodule(UP)
    torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5)
    with pytest.raises(ValueError, match=r"^advise: .*up_proj must have a plain weight"):
        prunekern.advise(model, tokenizer, text)
    torch.nn.utils.prune.remove(layer, "weight")
    prunekern.replace_linears(model, "csr", targets=UP)
    with pytest.raises(ValueError, match=r"^advise: .*up_proj must be dense, got a SparseLinear"):
        prunekern.advise(model, tokenizer, text)


@pytest.mark.parametrize("where", ["sensitivity", "plan 1"])
def test_an_interruption_leaves_the_model_as_it_was(loaded, text, twice_as_fast, where):
    model, tokenizer = loaded
    before = state(model)

    def stop(what, share):
        if what.startswith(where):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prunekern.advise(model, tokenizer, text, quality=0.01, windows=3, progress=stop)
    assert same(model, before) and not sparse(model)
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_a_plan_of_another_model_or_text_is_not_applied_in_silence(
    loaded, llama, text, twice_as_fast, tmp_path
):
    model, tokenizer = loaded
    plan = prunekern.advise(model, tokenizer, text, quality=0.01, method="wanda", windows=3)
    other = llama(intermediate_size=128)
    before = state(other)
    with pytest.raises(ValueError, match=r"^apply: .* must be a dense layer of .* as in the plan"):
        prunekern.apply(other, plan, tokenizer, text)
    assert same(other, before)
    with pytest.raises(ValueError, match=r"^apply: text must be the file that the plan"):
        prunekern.apply(model, plan, tokenizer)
    changed = tmp_path / "other.txt"
    changed.write_text(text.read_text()[::-1])
    with pytest.warns(UserWarning, match="not the one that the plan was made with"):
        prunekern.apply(model, plan, tokenizer, changed)


def test_the_parts_of_a_text_share_nothing(loaded, text):
    parts = windows_of(loaded, text)
    tokens = loaded[1](text.read_text())["input_ids"]
    count = len(tokens) // 512
    assert len(parts.calibration) + len(parts.held_out) < count
    assert parts.held_out.flatten().tolist() == tokens[-parts.held_out.numel() :]
    start = len(tokens) - count * 512
    first = parts.calibration.numel()
    assert parts.calibration.flatten().tolist() == tokens[start : start + first]
    end = start + (count - len(parts.held_out)) * 512
    assert parts.compared.flatten().tolist() == tokens[end - 512 : end]
    assert torch.equal(calibration_of(*loaded, text, 4, 512), parts.calibration)
    short = text.with_name("short.txt")
    short.write_text("too short " * 100)
    with pytest.raises(ValueError, match=r"^advise: text must have at least 2048 tokens"):
        parts_of(*loaded, short)


# ------------------------------------------------------------------------------ command line


def test_advise_saves_a_plan_that_prune_carries_out(trained, text, tmp_path, twice_as_fast):
    file = tmp_path / "plan.json"
    common = ("--model", trained, "--text", text, "--method", "magnitude", "--dtype", "float32")
    printed = invoke("advise", *common, "--batch", "1=3,8", "--quality", "1%", "--save", file)
    assert "at most 1.01x dense" in printed and "75%" in printed
    plan = prunekern.Plan.from_json(file.read_text())
    assert plan.batches == {1: 0.75, 8: 0.25}
    found = json.loads(
        invoke("prune", tmp_path / "out", "--model", trained, "--plan", file, "--json")
    )
    assert len(found["saved"]["layers"]) == len(plan.pruned)
    kernels = {name: module.kernel for name, module in sparse(load(tmp_path / "out")).items()}
    assert kernels == {layer.name: layer.kernel for layer in plan.pruned}
    with pytest.raises(ValueError, match=r"^prune: pattern must be left out with a plan"):
        invoke("prune", tmp_path / "more", "--plan", file, "--pattern", "2:4")
    with pytest.raises(ValueError, match=r"^prune: plan must be a readable file"):
        invoke("prune", tmp_path / "more", "--plan", tmp_path / "none.json")
    for option, wrong in (("--batch", "one"), ("--quality", "good")):
        with pytest.raises(ValueError, match=r"^advise: (batch|quality) must be"):
            invoke("advise", "--model", trained, option, wrong)


def test_modules_are_swapped_back(loaded):
    model, _ = loaded
    twin = nn.Linear(64, 96, bias=False)
    own = model.get_submodule(UP)
    with pytest.raises(RuntimeError), whole_model.swapped(model, {UP: twin}):
        assert model.get_submodule(UP) is twin
        raise RuntimeError
    assert model.get_submodule(UP) is own


def test_the_package_and_its_function_are_told_apart():
    assert prunekern.advise is advising and callable(prunekern.apply)
