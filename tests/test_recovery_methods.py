"""What keeps weights sparse while they are trained, step by step."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekern
from prunekern.pruning.masks import nm_mask
from prunekern.recovery import FixedMask, Gradual, Movement, SrSte, distillation_loss, hidden_loss
from prunekern.recovery.method import count_strays
from prunekern.recovery.methods import lora, method_of
from prunekern.recovery.schedule import Sparsity, learning_rate

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


def layers(K=12, hidden=8):
    return nn.Sequential(nn.Linear(K, hidden), nn.Tanh(), nn.Linear(hidden, 4, bias=False)).double()


def loss_of(model, x):
    return model(x).square().sum()


def batch(K=12):
    return torch.randn(7, K, dtype=torch.float64)


def train_step(model, method, optimizer, x, step=0, parts=1):
    method.before_step(step)
    for part in x.chunk(parts):
        loss_of(model, part).backward()
    method.before_optimizer()
    optimizer.step()
    optimizer.zero_grad()
    method.after_optimizer()


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adam l2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fixed_masks_survive_momentum_and_weight_decay(name):
    model = layers()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):  # moments of all weights, before anything is pruned
        loss_of(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    prunekern.prune(model, "2:4", targets="all-linear")
    zeros = {n: p == 0 for n, p in model.named_parameters() if p.dim() == 2}
    before = copy.deepcopy(model)
    method = FixedMask()
    method.attach(model, 4)
    for step in range(4):
        train_step(model, method, optimizer, batch(), step)
        for name_, mask in zeros.items():
            assert torch.equal(model.get_parameter(name_) == 0, mask)
    method.detach()
    assert count_strays(method.modules, method.masks) == 0
    assert not torch.equal(before[0].weight, model[0].weight)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_zero_gradients_alone_would_not_do(name):
    """The known wrong version, so that the test above is known to be able to fail."""
    model = layers()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        loss_of(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    prunekern.prune(model, "2:4", targets="all-linear")
    masks = [m.weight.detach() != 0 for m in (model[0], model[2])]
    loss_of(model, batch()).backward()
    for module, mask in zip((model[0], model[2]), masks, strict=True):
        module.weight.grad.masked_fill_(~mask, 0.0)
    optimizer.step()
    assert model[0].weight[~masks[0]].count_nonzero() > 0


def test_fixed_masks_drop_gradients_before_they_are_clipped():
    model, x = layers(), batch()
    prunekern.prune(model, "2:4", targets="all-linear")
    plain = copy.deepcopy(model)
    loss_of(plain, x).backward()
    method = FixedMask("0")
    method.attach(model, 1)
    loss_of(model, x).backward()
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad * method.masks["0"])
    assert torch.equal(model[2].weight.grad, plain[2].weight.grad)
    method.detach()
    loss_of(model, x).backward()  # let go: whole gradients again
    assert (model[0].weight.grad[~method.masks["0"]] != 0).any()


@pytest.mark.parametrize("parts", [1, 3])
def test_srste_step_is_autograd_written_out(parts):
    model, x, lr, decay = layers(K=14), batch(K=14), 0.1, 0.02  # 14: a group of two at the end
    weights = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    bias = model[0].bias.detach().clone()
    method = SrSte("2:4", targets="all-linear", decay=decay)
    method.attach(model, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(2):
        masks = [nm_mask(w.float().abs(), 2, 4) for w in weights]
        masked = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
        b = bias.clone().requires_grad_()
        F.linear(F.linear(x, masked[0], b).tanh(), masked[1]).square().sum().backward()
        weights = [
            w - lr * (p.grad + decay * (~m * w))
            for w, p, m in zip(weights, masked, masks, strict=True)
        ]
        bias = bias - lr * b.grad
        train_step(model, method, optimizer, x, step, parts)
        assert torch.allclose(model[0].weight, weights[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(model[2].weight, weights[1], rtol=1e-12, atol=1e-12)
        assert torch.allclose(model[0].bias, bias, rtol=1e-12, atol=1e-12)
    method.detach()
    expected = weights[0] * nm_mask(weights[0].float().abs(), 2, 4)
    assert torch.allclose(model[0].weight, expected, rtol=1e-12, atol=1e-12)
    assert type(model[0]) is nn.Linear and not hasattr(model[0], "mask")
    assert count_strays(method.modules, method.masks) == 0


def test_srste_lets_pruned_weights_return():
    model = layers()
    with torch.no_grad():
        model[0].weight[:, 0] = 1e-9  # pruned at first, and wanted
    method = SrSte("2:4", targets="0", decay=0.0)
    method.attach(model, 60)
    assert not method.masks["0"][:, 0].any()
    x = torch.zeros(5, 12, dtype=torch.float64)
    x[:, 0] = 1
    for _ in range(60):
        (model(x) - 3).square().sum().backward()
        with torch.no_grad():
            model[0].weight -= 0.05 * model[0].weight.grad
        model.zero_grad()
        method.after_optimizer()
    assert method.masks["0"][:, 0].any()


@pytest.mark.parametrize("parts", [1, 3])
def test_movement_scores_are_autograd_written_out(parts):
    model, x, lr = layers(), batch(), 0.05
    weight, other, bias = (
        p.detach().clone() for p in (model[0].weight, model[2].weight, model[0].bias)
    )
    scores = torch.zeros_like(weight, dtype=torch.float32)
    method = Movement("unstructured", 0.5, targets="0", warmup=0.25, cooldown=0.25)
    optimizer = torch.optim.SGD([model[0].weight, model[0].bias, model[2].weight], lr=lr)
    method.attach(model, 4)
    for step in range(4):
        sparsity = [0.0, 0.0, 0.5 - 0.5 * (1 - 1 / 2) ** 3, 0.5][step]
        keep = weight.numel() - round(weight.numel() * sparsity)
        order = scores.flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[:keep]] = True
        mask = mask.view_as(weight)
        leaves = [t.clone().requires_grad_() for t in (weight * mask, other, bias)]
        F.linear(F.linear(x, leaves[0], leaves[2]).tanh(), leaves[1]).square().sum().backward()
        # Signed, with the gradient of the product: |W g| or a masked gradient would differ.
        scores = scores - (leaves[0].grad * weight).float()
        weight = weight - lr * leaves[0].grad * mask
        other, bias = other - lr * leaves[1].grad, bias - lr * leaves[2].grad
        train_step(model, method, optimizer, x, step, parts)
        raw = model[0].parametrizations.weight
        assert torch.allclose(raw[0].scores, scores, rtol=1e-5, atol=1e-6)
        assert torch.allclose(raw.original, weight, rtol=1e-9, atol=1e-12)
    method.detach()
    assert int((model[0].weight == 0).sum()) == weight.numel() // 2
    assert count_strays(method.modules, method.masks) == 0


def test_sparsity_follows_the_cubic_schedule():
    rule = Sparsity("unstructured", 0.8, warmup=0.2, cooldown=0.3)
    values = [rule.at(step, 10) for step in range(10)]
    assert values[:3] == [0.0, 0.0, 0.0]
    for step in range(2, 8):
        assert values[step] == pytest.approx(0.8 - 0.8 * (1 - (step - 2) / 5) ** 3)
    assert values[7:] == [0.8, 0.8, 0.8]
    assert [rule.at(0, 1), rule.at(1, 2)] == [0.8, 0.8]  # however few steps, full at the end
    for steps in range(1, 30):
        assert Sparsity("unstructured", 0.5, 0.4, 0.5).at(steps - 1, steps) == 0.5


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 10, 2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5) and 0 < rates[9] < 0.05
    assert learning_rate(0, 1, 0) == 1.0


def test_groups_lose_one_weight_after_the_other():
    rule, scores = Sparsity("2:4", None), torch.randn(6, 16)
    kept = [int(rule.mask(scores, s).view(6, 4, 4).sum(-1).unique()) for s in (0, 0.1, 0.3, 0.5)]
    assert kept == [4, 4, 3, 2]


@pytest.mark.parametrize("pattern, sparsity", [("2:4", None), ("unstructured", 0.75)])
def test_gradual_prunes_by_the_schedule_and_zeros_stay(pattern, sparsity):
    model = layers(K=16)
    method = Gradual(pattern, sparsity, targets="0", cooldown=0.2)
    method.attach(model, 10)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    zeros = torch.zeros(8, 16, dtype=torch.bool)
    shares = []
    for step in range(10):
        train_step(model, method, optimizer, batch(16), step)
        now = model[0].weight == 0
        assert (now | ~zeros).all()
        zeros = now
        shares.append(now.double().mean().item())
    method.detach()
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] == (sparsity or 0.5)
    assert len(set(shares)) > 2
    if pattern == "2:4":
        assert (model[0].weight.view(8, 4, 4) != 0).sum(-1).eq(2).all()
    assert (model[2].weight != 0).all()


@needs_peft
def test_lora_merges_into_the_mask(llama):
    model = llama()
    prunekern.prune(model, "2:4", targets="all-linear")
    before = copy.deepcopy(model)
    tokens = torch.randint(0, 128, (2, 16))
    method = lora(rank=3)
    method.attach(model, 5)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(method.modules)  # A and B of each layer, nothing else
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before(tokens).logits)  # B is zero at first
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    name = "model.layers.1.mlp.down_proj"
    adapter = model.get_submodule(name)
    delta = adapter.lora_B["recovery"].weight @ adapter.lora_A["recovery"].weight * 2
    wanted = (before.get_submodule(name).weight + delta) * method.masks[name]
    with torch.no_grad():
        logits = model(tokens).logits
    method.detach()
    assert torch.allclose(model.get_submodule(name).weight, wanted, atol=1e-6)
    assert (wanted - before.get_submodule(name).weight).abs().max() > 1e-3
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, logits)  # merged is what was trained
    assert all(type(m) is nn.Linear for m in method.modules.values())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert all(p.requires_grad for p in model.parameters())
    for name, module in method.modules.items():
        assert torch.equal(module.weight == 0, before.get_submodule(name).weight == 0)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_distillation_loss_is_the_formula_in_float64(weight, temperature):
    student = torch.randn(3, 70, 33) * 3
    teacher, tokens = torch.randn(3, 70, 33) * 3, torch.randint(0, 33, (3, 70))
    mine = student.clone().requires_grad_()
    loss = distillation_loss(mine, tokens, teacher, weight, temperature)
    (2 * loss).backward()
    s = student.double().requires_grad_()
    p = torch.softmax(s[:, :-1], -1)
    picked = p.gather(2, tokens[:, 1:, None]).squeeze(2)
    soft_s = torch.softmax(s[:, :-1] / temperature, -1)
    soft_t = torch.softmax(teacher.double()[:, :-1] / temperature, -1)
    kl = (soft_t * (soft_t / soft_s).log()).sum(-1).mean() * temperature**2
    wanted = (1 - weight) * -picked.log().mean() + weight * kl
    (2 * wanted).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(mine.grad.double(), s.grad, rtol=1e-4, atol=1e-8)
    assert mine.grad[:, -1].count_nonzero() == 0


def test_without_a_teacher_it_is_cross_entropy():
    logits, tokens = torch.randn(2, 9, 33), torch.randint(0, 33, (2, 9))
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert distillation_loss(logits, tokens).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_hidden_loss_weighs_layers_alike():
    states = [torch.randn(2, 5, 8, dtype=torch.float64) * scale for scale in (1, 1000)]
    off = [s * 1.1 for s in states]
    assert hidden_loss(off, states).item() == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ValueError, match="teacher must have hidden states"):
        hidden_loss(off[:1], states)


def test_errors_leave_the_model_alone(llama):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layers must be pruned, got no zeros in .*prune first"):
        FixedMask().attach(model, 1)
    prunekern.prune(model, "2:4", targets="q_proj")
    with pytest.raises(ValueError, match=r"no zeros in model\.layers\.0\.self_attn\.k_proj"):
        FixedMask(["q_proj", "k_proj"]).attach(model, 1)
    with pytest.raises(ValueError, match=r"method must be one of fixed, .*got 'magic'"):
        method_of("magic")
    for wrong in ({"warmup": 0.5, "cooldown": 0.5}, {"warmup": -0.1}):
        with pytest.raises(ValueError, match="warmup and cooldown must be shares"):
            Gradual(**wrong)
    with pytest.raises(ValueError, match=r"sparsity of 2:4 must be 0.5"):
        SrSte("2:4", 0.6)
    with pytest.raises(ValueError, match="decay must be 0 or more"):
        SrSte(decay=-1.0)

    class Scaled(nn.Linear):
        pass

    model.model.layers[1].mlp.up_proj.__class__ = Scaled
    with pytest.raises(ValueError, match=r"up_proj must be a plain nn.Linear for sr-ste"):
        SrSte(targets="all-linear").attach(model, 1)
    assert all(type(m) in (nn.Linear, Scaled) for m in model.modules() if isinstance(m, nn.Linear))
    assert before.keys() == model.state_dict().keys()
