"""recover: the loop, its checkpoints, and the callback for transformers' Trainer."""

import copy
import importlib.util
import os
import signal
from functools import partial

import pytest
import torch

import prunekern
from prunekern.recovery import Gradual, Movement, RecoverCallback, SrSte, lora, plot_losses
from prunekern.recovery.data import batch_of
from prunekern.recovery.interrupt import deferred_interrupt
from prunekern.recovery.state import FILE

METHODS = {
    "fixed": lambda: "fixed",
    "sr-ste": lambda: SrSte("2:4", targets="all-linear"),
    "movement": lambda: Movement("unstructured", 0.5, targets="all-linear"),
    "gradual": lambda: Gradual("2:4", targets="all-linear"),
    "lora": lambda: lora(rank=2),
}
SETTINGS = {"steps": 6, "batch": 2, "accumulate": 2, "lr": 1e-2, "warmup": 0.2}


@pytest.fixture
def tokens():
    # A language that can be learned: each token is the one before and a little.
    return (torch.arange(16) + torch.arange(0, 108, 12)[:, None]) % 108


def pruned(llama, **changes):
    torch.manual_seed(0)
    model = llama(**changes)
    prunekern.prune(model, "2:4", targets="all-linear")
    return model


def start(llama, name, **changes):
    if name == "lora" and importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    if name in ("fixed", "lora"):
        return pruned(llama, **changes)
    torch.manual_seed(0)
    return llama(**changes)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", METHODS)
def test_loss_falls_and_the_pattern_holds(name, llama, tokens):
    model = start(llama, name)
    names = [n for n, _ in model.named_parameters()]
    settings = SETTINGS | {"steps": 30, "lr": 5e-2 if name == "lora" else 1e-2}
    report = prunekern.recover(model, tokens, METHODS[name](), **settings)
    assert report.losses[-1].total < 0.9 * report.losses[0].total
    assert report.steps == len(report.losses) == 30 and report.tokens == 30 * 4 * 16
    assert len(report.layers) == 14 and report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert [n for n, _ in model.named_parameters()] == names and not model.training
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        logits = model(tokens).logits
    kernel = "csr" if name == "movement" else "2:4"
    prunekern.replace_linears(model, kernel, targets="all-linear", **_refuse(kernel))
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, logits, atol=1e-4)


def _refuse(kernel):
    return {"prune": False} if kernel == "2:4" else {}


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_is_the_same_to_the_bit(name, llama, tokens, tmp_path):
    dropout = {"attention_dropout": 0.1}  # so that random numbers count as well
    settings = SETTINGS | {"teacher": llama(), "seed": 5}
    straight = start(llama, name, **dropout)
    whole = prunekern.recover(straight, tokens, METHODS[name](), **settings)

    class Cut(Exception):
        pass

    def stop(progress):
        if progress.step == 4:
            raise Cut  # after the checkpoint of step 3, whose work is done again

    cut = partial(prunekern.recover, data=tokens, **settings, checkpoint=tmp_path, save_every=3)
    with pytest.raises(Cut):
        cut(start(llama, name, **dropout), method=METHODS[name](), progress=stop)
    assert os.listdir(tmp_path) == [FILE]
    model, steps = start(llama, name, **dropout), []
    torch.manual_seed(99)
    resumed = cut(model, method=METHODS[name](), progress=lambda p: steps.append(p.step))
    assert steps == [4, 5, 6]
    assert same(model, straight)
    assert resumed.losses == whole.losses

    again = start(llama, name, **dropout)  # it is done: nothing is left to do
    assert cut(again, method=METHODS[name]()).losses == whole.losses and same(again, straight)


@pytest.mark.parametrize("name", ["fixed", "lora"])
def test_another_seed_is_another_training(name, llama, tokens):
    models = [start(llama, name) for _ in range(3)]
    for i, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(i)
        state = torch.get_rng_state()
        prunekern.recover(model, tokens, METHODS[name](), **SETTINGS, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are not ours
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_interrupt_ends_the_step_and_leaves_a_checkpoint(llama, tokens, tmp_path):
    straight, model = pruned(llama), pruned(llama)
    prunekern.recover(straight, tokens, **SETTINGS)
    handler = signal.getsignal(signal.SIGINT)
    strikes = []

    def strike(*_):
        if not strikes:  # in the midst of a forward pass
            strikes.append(os.kill(os.getpid(), signal.SIGINT))

    model.model.layers[0].register_forward_hook(strike)
    with pytest.raises(KeyboardInterrupt):
        prunekern.recover(model, tokens, **SETTINGS, checkpoint=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert os.listdir(tmp_path) == [FILE]
    assert torch.load(tmp_path / FILE, weights_only=True)["step"] == 1
    zeros = {n for n, p in model.named_parameters() if (p == 0).double().mean() == 0.5}
    assert len(zeros) == 14  # and the model is left pruned
    again = pruned(llama)
    prunekern.recover(again, tokens, **SETTINGS, checkpoint=tmp_path)
    assert same(again, straight)


def test_an_interrupted_save_leaves_the_old_checkpoint(llama, tokens, tmp_path, monkeypatch):
    settings = SETTINGS | {"checkpoint": tmp_path, "save_every": 2}
    save, calls = torch.save, []

    def half(state, file):
        calls.append(state["step"])
        if len(calls) == 2:
            file.write(b"half")
            raise KeyboardInterrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        prunekern.recover(pruned(llama), tokens, **settings)
    assert calls == [2, 4] and os.listdir(tmp_path) == [FILE]
    assert torch.load(tmp_path / FILE, weights_only=True)["step"] == 2


def test_checkpoints_of_another_training_are_refused(llama, tokens, tmp_path):
    recover = partial(prunekern.recover, **SETTINGS, checkpoint=tmp_path)
    recover(pruned(llama), tokens)
    model = pruned(llama)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"with lr 0.01 instead of 0.5; name another folder"):
        prunekern.recover(model, tokens, **SETTINGS | {"lr": 0.5}, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"must be of this training, got .* with data"):
        recover(model, tokens[:5])
    for other in (torch.optim.SGD, partial(torch.optim.SGD, lr=0.1)):
        with pytest.raises(ValueError, match="with optimizer 'AdamW' instead of 'SGD'"):
            recover(model, tokens, optimizer=other)
    with pytest.raises(ValueError, match="with teacher False instead of True"):
        recover(model, tokens, teacher=before)
    (tmp_path / FILE).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"must be one that recover wrote, got .*recovery.pt"):
        recover(model, tokens)
    assert same(model, before)


def test_a_step_is_adamw_on_the_mean_gradient(llama, tokens):
    """The loop against one written out: accumulation, clipping, warm-up and cosine."""
    model, own = pruned(llama), pruned(llama)
    dense = llama()
    report = prunekern.recover(
        model, tokens, **SETTINGS, clip=0.5, teacher=dense, teacher_weight=0.3, temperature=2.0
    )
    masks = {n: p != 0 for n, p in own.named_parameters() if n.endswith("proj.weight")}
    optimizer = torch.optim.AdamW(own.parameters(), lr=1.0)
    for step in range(6):
        batch = torch.cat([batch_of(tokens, 2 * step + i, 2, 0) for i in range(2)])
        logits, wanted = own(batch).logits[:, :-1], dense(batch).logits[:, :-1].detach()
        entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        p, q = torch.softmax(logits / 2, -1), torch.softmax(wanted / 2, -1)
        loss = 0.7 * entropy + 0.3 * 4 * (q * (q / p).log()).sum(-1).mean()
        assert report.losses[step].total == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            own.get_parameter(name).grad *= mask
        torch.nn.utils.clip_grad_norm_(own.parameters(), 0.5)
        cosine = 0.5 * (1 + torch.tensor(torch.pi * (step - 1) / 5).cos().item())
        optimizer.param_groups[0]["lr"] = 1e-2 * (cosine if step >= 1 else 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                own.get_parameter(name).mul_(mask)
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, own(tokens).logits, atol=2e-3)


@pytest.mark.parametrize("given", ["factory", "instance"])
def test_any_optimizer(given, llama, tokens):
    model = start(llama, "movement")  # whose layers change their class meanwhile
    factory = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    optimizer = factory if given == "factory" else factory(model.parameters())
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    prunekern.recover(model, tokens, METHODS["movement"](), optimizer=optimizer, steps=6)
    after = model.model.layers[0].mlp.up_proj.weight
    assert ((after != before) & (after != 0)).any()
    assert (after == 0).double().mean() == 0.5


def test_gradient_checkpointing_and_autocast(llama, tokens):
    plain, less, rounded = (pruned(llama) for _ in range(3))
    prunekern.recover(plain, tokens, **SETTINGS)
    prunekern.recover(less, tokens, **SETTINGS, gradient_checkpointing=True)
    for name, value in plain.state_dict().items():
        assert torch.allclose(less.state_dict()[name], value, atol=1e-6)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in less.modules())
    report = prunekern.recover(rounded, tokens, **SETTINGS, autocast=torch.bfloat16)
    assert rounded.dtype == torch.float32 and not same(rounded, plain)
    assert report.losses[-1].total < report.losses[0].total


def test_the_dense_parent_teaches(llama, tokens, tmp_path):
    dense = llama()
    dense.save_pretrained(tmp_path)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    prunekern.prune(model, "2:4", targets="all-linear")
    other = copy.deepcopy(model)
    settings = SETTINGS | {"teacher_weight": 1.0, "hidden_weight": 0.1}
    loaded = prunekern.recover(model, tokens, **settings, teacher="dense")
    passed = prunekern.recover(other, tokens, **settings, teacher=dense)
    assert loaded.losses == passed.losses and same(model, other)
    assert loaded.losses[0].hidden > 0
    model.name_or_path = model.config._name_or_path = ""
    with pytest.raises(ValueError, match="pass the dense model itself as teacher"):
        prunekern.recover(model, tokens, teacher="dense")
    # A method that prunes while it trains still has its parent: nothing to learn at first.
    report = prunekern.recover(
        dense, tokens, Gradual(targets="all-linear"), **settings, teacher="dense"
    )
    assert report.losses[0].total == pytest.approx(0, abs=1e-6) and report.losses[-1].total > 1e-4


def test_a_dense_model_is_trained_without_masks(llama, tokens):
    model = llama()
    report = prunekern.recover(model, tokens, None, **SETTINGS)
    assert report.method == "none" and report.layers == () and "6 steps" in str(report)


def test_text_of_any_form(llama, tokens, tmp_path):
    class Tokenizer:
        eos_token_id = bos_token_id = None

        def __call__(self, text, **_):
            return {"input_ids": [ord(c) % 108 for c in text]}

    texts = ["how now brown cow " * 12, "the rain in Spain " * 9]
    reports = [
        prunekern.recover(pruned(llama), data, steps=2, window=32, tokenizer=Tokenizer())
        for data in (texts, [{"text": t} for t in texts])
    ]
    assert reports[0].losses == reports[1].losses
    with pytest.raises(ValueError, match="recover: tokenizer must be given"):
        prunekern.recover(pruned(llama), texts)
    with pytest.raises(ValueError, match="recover: data must have at least 99 tokens"):
        prunekern.recover(pruned(llama), texts[:0], window=99, tokenizer=Tokenizer())


def test_batches_are_shuffled_passes():
    tokens = torch.arange(5)[:, None]
    stream = torch.cat([batch_of(tokens, i, 2, seed=3) for i in range(5)]).flatten().tolist()
    assert sorted(stream[:5]) == sorted(stream[5:]) == [0, 1, 2, 3, 4]
    assert stream[:5] != stream[5:]
    assert len(batch_of(tokens, 0, 12, 0)) == 12  # more than there are


def test_progress_tells_what_is_left(llama, tokens):
    told = []
    prunekern.recover(pruned(llama), tokens, **SETTINGS, progress=told.append)
    assert [p.step for p in told] == [1, 2, 3, 4, 5, 6] and told[0].steps == 6
    assert told[0].seconds_left > 0 == told[-1].seconds_left


def test_plot(llama, tokens, tmp_path):
    pytest.importorskip("matplotlib")
    report = prunekern.recover(pruned(llama), tokens, **SETTINGS, teacher=llama())
    assert report.plot(tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="curves must have one step or more"):
        plot_losses({}, tmp_path / "none.png")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"batch": 1.5}, "batch must be 1 or more, got 1.5"),
        ({"lr": -1.0}, "lr must be above 0, got -1.0"),
        ({"warmup": 1.0}, r"warmup must be a share in \[0, 1\), got 1.0"),
        ({"clip": 0.0}, "clip must be above 0 or None"),
        ({"teacher_weight": 2.0}, r"teacher_weight must be in \[0, 1\], got 2.0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"hidden_weight": -1.0}, "hidden_weight must be 0 or more"),
        ({"hidden_weight": 1.0}, "hidden_weight must be 0 without a teacher"),
        ({"autocast": torch.float16}, "autocast must be torch.bfloat16 or None"),
        ({"save_every": 3}, "checkpoint must be a folder where save_every is given"),
        ({"save_every": 0}, "save_every must be 1 or more"),
        ({"teacher": "sparse"}, 'teacher must be a model, "dense" or None'),
        ({"method": "magic"}, "method must be one of"),
    ],
)
def test_wrong_arguments(wrong, message, llama, tokens):
    model = pruned(llama)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"^recover: {message}"):
        prunekern.recover(model, tokens, **wrong)
    with pytest.raises(ValueError, match="teacher must be another model"):
        prunekern.recover(model, tokens, teacher=model)
    with pytest.raises(ValueError, match="must have the model's vocabulary of 128, got 200"):
        prunekern.recover(model, tokens, teacher=llama(vocab_size=200))
    assert same(model, before)


def test_a_loss_that_is_not_finite_stops(llama, tokens):
    model = pruned(llama)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(ValueError, match="loss must be finite, got nan in step 1; a lower lr"):
        prunekern.recover(model, tokens)
    assert not model.training


def test_the_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)


def test_coarse_weights_are_warned_of(llama, tokens):
    model = pruned(llama).bfloat16()
    with pytest.warns(UserWarning, match="weights are torch.bfloat16, whose steps are coarser"):
        prunekern.recover(model, tokens, steps=1)


def test_layers_that_were_replaced_are_refused(llama, tokens):
    model = pruned(llama)
    prunekern.replace_linears(model, "2:4", targets="q_proj")
    with pytest.raises(ValueError, match=r"q_proj must be an nn.Linear, .*restore_linears"):
        prunekern.recover(model, tokens)
    prunekern.restore_linears(model)
    assert len(prunekern.recover(model, tokens, steps=1).layers) == 14


def test_frozen_models_are_refused(llama, tokens):
    model = llama().requires_grad_(False)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="must have parameters that require gradients"):
        prunekern.recover(model, tokens, "sr-ste")
    assert same(model, before)


def test_gradients_left_behind_do_not_count(llama, tokens):
    models = [pruned(llama) for _ in range(2)]
    models[1](tokens, labels=tokens).loss.backward()
    for model in models:
        prunekern.recover(model, tokens, steps=1)
    assert same(*models)


# ------------------------------------------------------------------------- transformers' Trainer


def trainer(model, tokens, method, folder, **changes):
    from transformers import Trainer, TrainingArguments

    options = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "gradient_accumulation_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
    }
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(**options | changes)
    callbacks = [RecoverCallback(method)]
    return Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "lora"])
def test_callback_keeps_the_trainers_model_sparse(name, llama, tokens, tmp_path):
    model = start(llama, name)
    before = copy.deepcopy(model)
    run = trainer(model, tokens, METHODS[name](), tmp_path)
    run.train()
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert model.state_dict().keys() == before.state_dict().keys()
    for layer, old in zip(model.model.layers, before.model.layers, strict=True):
        weight, past = layer.mlp.up_proj.weight, old.mlp.up_proj.weight
        assert type(layer.mlp.up_proj) is torch.nn.Linear
        assert (weight == 0).double().mean() == 0.5 and not torch.equal(weight, past)
        if name == "fixed":
            assert torch.equal(weight == 0, past == 0)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "lora"])
def test_the_trainers_checkpoints_resume(name, llama, tokens, tmp_path):
    straight = start(llama, name)
    trainer(straight, tokens, METHODS[name](), tmp_path / "a").train()
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer(start(llama, name), tokens, METHODS[name](), tmp_path / "b", **options).train()
    model = start(llama, name)
    run = trainer(model, tokens, METHODS[name](), tmp_path / "b", **options)
    run.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert same(model, straight)


def test_callback_adds_the_methods_gradients(llama, tokens, tmp_path):
    models = [start(llama, "sr-ste") for _ in range(2)]
    for model, decay in zip(models, (0.0, 10.0), strict=True):
        trainer(model, tokens, SrSte("2:4", decay=decay), tmp_path, optim="sgd").train()
    assert not same(*models)


def test_callback_refuses_lora():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="method must be another than lora"):
        RecoverCallback("lora")
