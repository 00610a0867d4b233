"""Pruning by calibration, against a plain walk that runs the whole model for each layer."""

import copy
import os
import warnings

import pytest
import torch
from torch import nn

import prunekern
from prunekern.pruning import calibrated, masks
from prunekern.pruning.calibration import calibration_windows
from prunekern.pruning.input_statistics import Hessian, InputNorms
from prunekern.pruning.sparsegpt import inverse_factor, sparsegpt_prune

IDS = torch.randint(0, 128, (5, 24), generator=torch.Generator().manual_seed(5))
LINEARS = [f"self_attn.{x}_proj" for x in "qkvo"] + [
    f"mlp.{x}_proj" for x in ("gate", "up", "down")
]


def wanda(model, **changes):
    settings = {"method": "wanda", "targets": "all-linear", "calibration": IDS, **changes}
    return prunekern.prune(model, **settings)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, expected):
    state = model.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


def plain_walk(model, decide):
    """Prunes layer after layer, the whole model run anew for each; decide(weight, x) -> weight."""
    for layer in model.model.layers:
        seen = {}
        hooks = [
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name, seen=seen: seen.update({name: args[0].flatten(0, 1)})
            )
            for name in LINEARS
        ]
        with torch.no_grad():
            model(IDS)
        for hook in hooks:
            hook.remove()
        for name, x in seen.items():
            weight = layer.get_submodule(name).weight
            weight.data = decide(weight.data, x.double()).to(weight.dtype)


@pytest.mark.parametrize("pattern", ["2:4", "1:3", "unstructured"])
def test_wanda_is_the_plain_walk(llama, pattern):
    model = llama()
    oracle = copy.deepcopy(model)

    def decide(weight, x):
        scores = weight.double().abs() * x.square().sum(0).sqrt()
        kept = torch.zeros_like(scores, dtype=torch.bool)
        size = 4 if pattern == "2:4" else 3 if pattern == "1:3" else scores.shape[1]
        for start in range(0, scores.shape[1], size):
            group = scores[:, start : start + size]
            keep = {"2:4": 2, "1:3": 1}.get(pattern) or group.shape[1] - round(group.shape[1] * 0.5)
            kept[:, start : start + size].scatter_(1, group.argsort(1)[:, -keep:], True)
        return weight.masked_fill(~kept, 0)

    plain_walk(oracle, decide)
    wanda(model, pattern=pattern)
    assert same(model, weights(oracle))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_sparsegpt_is_the_plain_walk(llama, pattern):
    model = llama()
    oracle = copy.deepcopy(model)
    nm = masks.parse_pattern(pattern)

    def decide(weight, x):
        factor, dead = inverse_factor((2 * x.T @ x / len(x)).float(), 0.01, "")
        return sparsegpt_prune(weight, factor, dead, nm, 0.5)

    plain_walk(oracle, decide)
    wanda(model, pattern=pattern, method="sparsegpt")
    for name, expected in oracle.state_dict().items():
        got = model.state_dict()[name]
        # Sums in another order move a choice between two that cost the same, no more.
        assert ((got == 0) != (expected == 0)).double().mean() < 0.01, name
        assert (got - expected).norm() <= 0.02 * expected.norm(), name


@pytest.mark.parametrize("make", [InputNorms, Hessian])
def test_a_statistic_is_the_mean_over_all_tokens(make):
    x = torch.randn(60, 7) * torch.logspace(-1, 1, 7)
    statistic = make(7, torch.device("cpu"))
    for piece in x.split([1, 30, 9, 20]):
        statistic.add(piece)
    exact = x.double()
    if make is InputNorms:
        expected = (exact.square().sum(0) / 60).sqrt()
        torch.testing.assert_close(statistic.norm("").double(), expected, rtol=1e-5, atol=1e-7)
    else:
        expected = 2 * exact.T @ exact / 60
        torch.testing.assert_close(
            statistic._hessian.double(), expected, rtol=1e-4, atol=1e-5 * expected.max().item()
        )


def test_layers_of_one_input_share_one_statistic(llama, monkeypatch):
    made, factored = [], []
    init, factor = Hessian.__init__, calibrated.Hessian.factor
    monkeypatch.setattr(
        Hessian, "__init__", lambda self, *a: (made.append(a[0]), init(self, *a))[1]
    )
    monkeypatch.setattr(
        Hessian, "factor", lambda self, *a: (factored.append(id(self)), factor(self, *a))[1]
    )
    wanda(llama(), method="sparsegpt")
    assert made == [64, 64, 64, 96] * 2  # q/k/v, o, gate/up, down; two layers
    assert len(factored) == 14


def test_a_layer_is_left_when_all_targets_were_heard(llama, monkeypatch):
    model, ran = llama(), []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    wanda(model, targets=["q_proj", "v_proj"])
    # To record calls: 2 layers. Statistics: the first window only. Then layer 0 to feed layer 1.
    assert len(ran) == 2 + 2 * 1 + 1 * len(IDS)


@pytest.mark.parametrize("repeats", [(2, 2, 2, 2, 2), (1, 0, 1, 1, 0)])
def test_layers_run_twice_or_not_at_all_are_heard_as_often(llama, monkeypatch, repeats):
    """As experts are, to which a window may send no token."""

    class Experts(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp, self.own_proj, self.calls = mlp, nn.Linear(64, 64), 0

        def forward(self, x):
            repeat = repeats[(self.calls - 1) % 5] if self.calls else 1  # first: recording
            self.calls += 1
            for i in range(repeat):
                x = x + self.own_proj(x + i)
            return self.mlp(x + 0.0)

    heard = []
    add = InputNorms.add
    monkeypatch.setattr(InputNorms, "add", lambda self, x: (heard.append(len(x)), add(self, x)))
    for targets, others in (("all-linear", 4), ("own_proj", 0)):
        heard.clear()
        model = llama(num_hidden_layers=1)
        model.model.layers[0].mlp = Experts(model.model.layers[0].mlp)
        wanda(model, targets=targets)
        assert sum(heard) == 24 * (5 * others + sum(repeats))


def test_each_layer_is_listened_to_once_for_each_token(llama, monkeypatch):
    tokens = []
    monkeypatch.setattr(InputNorms, "add", lambda self, x: tokens.append(len(x)))
    monkeypatch.setattr(InputNorms, "norm", lambda self, name: torch.ones(1))
    wanda(llama())
    assert sum(tokens) == 2 * 4 * IDS.numel()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "ria", "taylor"])
def test_the_model_is_left_as_it_came_but_for_its_zeros(llama, method):
    model = llama(attention_bias=True).train()
    model.model.layers[0].mlp.eval()
    model.model.norm.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    required = [p.requires_grad for p in model.parameters()]
    parameters = [id(p) for p in model.parameters()]
    before = weights(model)
    report = wanda(model, method=method)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == required
    assert [id(p) for p in model.parameters()] == parameters
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    pruned = {f"{layer.name}.weight" for layer in report.layers}
    assert len(pruned) == 14 and report.sparsity == 0.5
    for name, tensor in model.state_dict().items():
        if name not in pruned:  # lm_head among them
            assert torch.equal(tensor, before[name])
        else:
            assert not torch.signbit(tensor[tensor == 0]).any()
            kept = tensor != 0
            assert method == "sparsegpt" or torch.equal(tensor[kept], before[name][kept])
    assert report.calibration == (5, 24) and "5 windows of 24 tokens" in str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "taylor"])
def test_short_dtypes(llama, method, dtype):
    model = llama().to(dtype)
    report = wanda(model, method=method, pattern="4:8")
    assert report.sparsity == pytest.approx(0.5) and model.dtype == dtype


def test_targets_in_some_layers_only(llama):
    model = llama(num_hidden_layers=4)
    before = weights(model)
    report = wanda(model, targets=["layers.1.mlp.up_proj", "layers.2.self_attn.v_proj"])
    assert len(report.layers) == 2
    changed = [k for k, t in model.state_dict().items() if not torch.equal(t, before[k])]
    assert changed == [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.self_attn.v_proj.weight",
    ]


def test_a_base_model_and_mistral(llama):
    from transformers import MistralConfig, MistralForCausalLM

    assert len(wanda(llama().model).layers) == 14
    config = MistralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    assert wanda(MistralForCausalLM(config), method="sparsegpt").sparsity == 0.5


# ------------------------------------------------------------------- stopping, resuming, undoing


class Interrupted(Exception):
    pass


def stop_at(share):
    def progress(done, left):
        if done >= share:
            raise Interrupted

    return progress


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(llama, tmp_path, monkeypatch, method):
    dense = llama(num_hidden_layers=4)
    expected, resumed = copy.deepcopy(dense), copy.deepcopy(dense)
    whole = wanda(expected, method=method)
    before = weights(resumed)
    for share in (0.4, 0.8):
        with pytest.raises(Interrupted):
            wanda(resumed, method=method, state=tmp_path / "s", progress=stop_at(share))
        assert same(resumed, before)
    kept = sorted(os.listdir(tmp_path / "s"))
    assert kept == ["layer-00000.safetensors", "layer-00001.safetensors",
                    "layer-00002.safetensors", "run.json"]  # fmt: skip
    solved = []
    decide = prunekern.pruning._decide
    monkeypatch.setattr(
        prunekern.pruning, "_decide", lambda *a: (solved.append(a[2]), decide(*a))[1]
    )
    report = wanda(resumed, method=method, state=tmp_path / "s")
    assert same(resumed, weights(expected)) and report == whole
    assert len(solved) == 7 and all("layers.3." in name for name in solved)


def test_a_state_of_another_run_is_refused(llama, tmp_path):
    dense = llama()
    wanda(copy.deepcopy(dense), state=tmp_path)
    for changes in (
        {"pattern": "1:4"},
        {"method": "ria"},
        {"targets": "q_proj"},
        {"calibration": IDS.flip(0)},
    ):
        model = copy.deepcopy(dense)
        with pytest.raises(ValueError, match="state must be a folder of this very run"):
            wanda(model, state=tmp_path, **changes)
        assert same(model, weights(dense))
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    before = weights(other)
    with pytest.raises(ValueError, match=r"state must be of this very model, got .*layer-00001"):
        wanda(other, state=tmp_path)
    assert same(other, before)
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    with pytest.raises(ValueError, match="state must be a folder of this very run"):
        wanda(other, state=tmp_path)


def test_a_damaged_state_is_an_error(llama, tmp_path):
    model = llama()
    wanda(copy.deepcopy(model), state=tmp_path)
    path = tmp_path / "layer-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    before = weights(model)
    with pytest.raises(ValueError, match=r"whole files, got .*layer-00001.safetensors.*delete it"):
        wanda(model, state=tmp_path)
    assert same(model, before)
    path.unlink()
    wanda(model, state=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="this very run"):
        wanda(model, state=tmp_path)


def test_nothing_half_written_is_left(llama, tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("prunekern.pruning.state.save_file", half)
    model = llama()
    before = weights(model)
    with pytest.raises(OSError, match="disk full"):
        wanda(model, state=tmp_path)
    assert os.listdir(tmp_path) == ["run.json"] and same(model, before)


def test_activations_in_files_give_the_same_bits(llama, tmp_path, monkeypatch):
    model = llama()
    other = copy.deepcopy(model)
    wanda(model, method="sparsegpt")
    sizes, from_file = [], torch.from_file
    monkeypatch.setattr(
        torch, "from_file", lambda *a, **k: (sizes.append(k["size"]), from_file(*a, **k))[1]
    )
    wanda(other, method="sparsegpt", offload=tmp_path / "scratch")
    assert same(other, weights(model))
    assert sizes[0] == IDS.numel() * 64  # one layer's inputs, and then dense weights
    assert sum(sizes[1:]) == sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_error_in_a_late_layer_undoes_the_early_ones(llama, method):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")
    before = weights(model)
    message = r"layers\.1\.self_attn\.q_proj must have finite calibration inputs"
    with pytest.raises(ValueError, match=message):
        wanda(model, method=method)
    assert all(
        torch.equal(t, before[k]) for k, t in model.state_dict().items() if "layernorm" not in k
    )


def test_a_layer_that_no_token_reaches_is_named(llama):
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle_proj = nn.Linear(64, 64)

        def forward(self, x):
            return x

    model = llama()
    model.model.layers[1].mlp = Bypass()
    with pytest.raises(ValueError, match=r"mlp\.idle_proj must be run by the calibration text"):
        wanda(model)


@pytest.mark.parametrize("changes", [{}, {"method": "taylor"}, {"allocation": "owl",
    "pattern": "unstructured"}, {"targets": "layers.1.mlp.up_proj"}])  # fmt: skip
def test_progress_grows_to_one(llama, changes):
    told = []
    wanda(llama(), progress=lambda done, left: told.append((done, left)), **changes)
    shares = [done for done, _ in told]
    assert shares == sorted(shares) and len(set(shares)) == len(shares)
    assert shares[-1] == pytest.approx(1) and told[-1][1] == pytest.approx(0, abs=1e-6)
    assert all(left >= 0 for _, left in told[:-1])


# ------------------------------------------------------------------------------------ sparsity


def test_sparsity_by_name(llama):
    model = llama()
    shares = {"q_proj": 0.25, "layers.1.self_attn.q_proj": 0.75, "down_proj": 0.0}
    report = wanda(model, pattern="unstructured", sparsity=shares, targets=["q_proj", "down_proj"])
    got = {layer.name: layer.sparsity for layer in report.layers}
    assert got == {
        "model.layers.0.self_attn.q_proj": 0.25, "model.layers.0.mlp.down_proj": 0.0,
        "model.layers.1.self_attn.q_proj": 0.75, "model.layers.1.mlp.down_proj": 0.0,
    }  # fmt: skip
    assert not prunekern.prune(llama(), "unstructured", sparsity={"q_proj": 0.5, "v_proj": 0.1}
        ).layers[1].sparsity > 0.11  # fmt: skip


def test_owl_spends_less_where_outliers_are(llama):
    model = llama()
    with torch.no_grad():  # two channels of layer 1 that stand out
        model.model.layers[1].input_layernorm.weight[:2] = 50
        model.model.layers[1].post_attention_layernorm.weight[:2] = 50
    for method in ("wanda", "sparsegpt", "magnitude", "taylor"):
        twin = copy.deepcopy(model)
        report = wanda(twin, method=method, pattern="unstructured", sparsity=0.6, allocation="owl")
        assert report.sparsity == pytest.approx(0.6, abs=0.01)
        mean = [
            sum(layer.sparsity for layer in report.layers if f"layers.{i}." in layer.name) / 7
            for i in (0, 1)
        ]
        assert mean[0] - mean[1] == pytest.approx(0.16, abs=0.02)


def test_taylor_is_the_mean_size_of_gradients(llama):
    model = llama()
    expected = {}
    for ids in IDS:
        loss = model(ids[None], labels=ids[None]).loss
        gradient = torch.autograd.grad(loss, model.model.layers[1].mlp.up_proj.weight)[0]
        expected["mean"] = expected.get("mean", 0) + gradient.abs() / len(IDS)
    scores = model.model.layers[1].mlp.up_proj.weight.detach().abs() * expected["mean"]
    wanda(model, method="taylor", pattern="unstructured", sparsity=0.3)
    kept = model.model.layers[1].mlp.up_proj.weight != 0
    assert (kept != masks.layer_mask(scores, 0.3)).double().mean() < 0.002


def test_methods_by_score_take_each_scope(llama):
    for method in ("magnitude", "random", "taylor"):
        calibration = IDS if method == "taylor" else None
        for scope in prunekern.pruning.METHODS[method].scopes:
            report = wanda(
                llama(), method=method, pattern="unstructured", sparsity=0.4, scope=scope,
                calibration=calibration,
            )  # fmt: skip
            assert report.sparsity == pytest.approx(0.4, abs=0.01)


def test_random_is_seeded(llama):
    model = llama()
    twins = [copy.deepcopy(model) for _ in range(3)]
    for twin, seed in zip(twins, (0, 0, 1), strict=True):
        wanda(twin, method="random", calibration=None, seed=seed)
    assert same(twins[0], weights(twins[1])) and not same(twins[0], weights(twins[2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": None}, "calibration must be given for wanda"),
        ({"method": "magnitude"}, "calibration must be left out for magnitude"),
        ({"method": "random", "calibration": None, "state": "s"}, "state must be left out for ran"),
        ({"method": "taylor", "state": "s"}, "state must be left out for taylor"),
        ({"method": "movement"}, "movement is learned while training"),
        ({"scope": "global"}, "scope must be one of row, layer for wanda, got 'global'"),
        ({"method": "sparsegpt", "scope": "row"}, "scope must be one of block for sparsegpt"),
        ({"allocation": "owls"}, "allocation must be one of uniform, owl"),
        ({"allocation": "owl"}, "pattern must be unstructured for owl, got 2:4"),
        ({"sparsity": {"q_proj": 0.5}}, "sparsity of 2:4 must be 0.5 or left out"),
        ({"pattern": "unstructured", "sparsity": {"q_proj": 1.5}}, "sparsity must be in"),
        ({"pattern": "unstructured", "sparsity": {"q_proj": 0.5}}, "must name every target, got "
         "none for model.layers.0.self_attn.k_proj"),
        ({"pattern": "unstructured", "sparsity": {"q_proj": 0.5, "x": 0.1}, "targets": "q_proj"},
         "must name targets only, got 'x'"),
        ({"method": "taylor", "pattern": "unstructured", "sparsity": {"q_proj": 0.5},
          "scope": "global"}, "sparsity must be one number for scope global"),
        ({"damping": 0.0, "method": "sparsegpt"}, "damping must be positive"),
        ({"windows": 0}, "windows must be 1 or more"),
        ({"window": 1}, "window must be 2 or more tokens"),
        ({"calibration": IDS.float()}, "calibration must be integer token ids"),
        ({"calibration": IDS + 120}, r"must have token ids from 0 to 127, got .* tokenizer\?"),
        ({"calibration": ["text"]}, "tokenizer must be given with calibration text"),
        ({"calibration": "no such file"}, "got 'no such file', which can not be read"),
        ({"calibration": 7}, "calibration must be the path of a UTF-8 text .* got int"),
        ({"calibration": {"train": []}}, "got dict; name one split"),
        ({"calibration": [3.5]}, "got an item of float"),
        ({"calibration": torch.arange(100)}, "must have at least 128 tokens, got 100"),
    ],
)  # fmt: skip
def test_bad_arguments_leave_the_model_alone(llama, changes, message):
    model = llama()
    before = weights(model)
    with pytest.raises(ValueError, match=f"prune: .*{message}"):
        wanda(model, **changes)
    assert same(model, before)


def test_targets_outside_of_decoder_layers_and_head_are_refused(llama):
    model = llama()
    model.extra = nn.Linear(64, 64)
    before = weights(model)
    with pytest.raises(ValueError, match=r"targets of wanda must be in decoder layers .*got extra"):
        wanda(model, targets=["all-linear", "extra"])
    assert same(model, before)


def test_other_models_are_told_what_to_do():
    model = nn.ModuleDict({"q_proj": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match=r"decoder layers at model.layers.* magnitude and random"):
        wanda(model)


def test_gradients_need_a_loss(llama):
    with pytest.raises(ValueError, match="causal language model for taylor, got LlamaModel"):
        wanda(llama().model, method="taylor")


# ---------------------------------------------------------------------------------- calibration


class Letters:
    """A tokenizer of one token a letter."""

    eos_token_id = 0
    bos_token_id = None

    def __init__(self):
        self.read = 0

    def __call__(self, text, verbose=True):
        self.read += len(text)
        return {"input_ids": [ord(c) for c in text]}


def test_calibration_in_every_form(llama, tmp_path):
    texts = ["ab" * 10, "c" * 7, "", "defg" * 30]
    stream = [ord(c) for c in texts[0]] + [0] + [ord(c) for c in texts[1]] + [0]
    stream += [ord(c) for c in texts[3]]
    model = llama()
    expected = torch.tensor(stream)[:144].view(9, 16)
    path = tmp_path / "text.txt"
    path.write_text("".join(map(chr, stream)))
    for source, end in (
        (texts, 0),
        (iter(texts), 0),
        ([{"text": t, "url": ""} for t in texts], 0),
        (path, 0),
        (str(path), 0),
        ([torch.tensor(stream[:50]), torch.tensor([stream[50:]])], None),
        ([stream[:50], tuple(stream[50:])], None),
        (torch.tensor(stream), 0),
        (expected, 0),
        (expected.to(torch.int32), 0),
    ):
        tokenizer = Letters()
        tokenizer.eos_token_id = end
        got = calibration_windows(model, source, tokenizer, window=16)
        assert torch.equal(got, expected) and got.dtype == torch.int64
    assert torch.equal(calibration_windows(model, expected, windows=3), expected[:3])
    again = calibration_windows(model, expected[:8], window=32)
    assert torch.equal(again, expected[:8].view(4, 32))


def test_documents_that_begin_with_a_token_are_not_joined_by_another(llama):
    class Begins(Letters):
        bos_token_id = 1

        def __call__(self, text, verbose=True):
            return {"input_ids": [1, *super().__call__(text)["input_ids"]]}

    got = calibration_windows(llama(), ["ab", "cd"], Begins(), window=2)
    assert got.flatten().tolist() == [1, 97, 98, 1, 99, 100]


def test_no_more_is_read_than_needed(llama):
    tokenizer, taken = Letters(), []

    def documents():
        for i in range(1000):
            taken.append(i)
            yield {"text": "x" * 50}

    got = calibration_windows(llama(), documents(), tokenizer, windows=4, window=20)
    assert got.shape == (4, 20) and len(taken) == 2
    tokenizer = Letters()
    assert calibration_windows(llama(), ["x" * 10**6], tokenizer, 2, 16).shape == (2, 16)
    assert tokenizer.read == 2 * 16 * 32

    class Words(Letters):
        def __call__(self, text, verbose=True):
            self.read += len(text)
            return {"input_ids": [len(word) % 128 for word in text.split()]}

    long = ("y" * 100 + " ") * 60  # more letters a token than thought
    assert calibration_windows(llama(), [long], Words(), 2, 16).shape == (2, 16)


def test_windows_are_capped(llama):
    ids = torch.zeros(10_000, dtype=torch.int64)
    wide = llama(max_position_embeddings=131072)
    assert calibration_windows(wide, ids).shape == (4, 2048)
    assert calibration_windows(llama(), ids).shape == (78, 128)
    with pytest.warns(UserWarning, match="window is capped to 2048 tokens, got 8192"):
        assert calibration_windows(wide, ids, window=8192).shape == (4, 2048)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibration_windows(nn.Linear(1, 1), ids, windows=2).shape == (2, 2048)
