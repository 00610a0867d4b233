import copy
import io
import pickle

import pytest
import torch
from conftest import bits, tiny_llama
from torch import nn

import prunekern
from prunekern import formats
from prunekern.formats import compress, decompress, tensor_names
from prunekern.layouts.sparse24 import is_transposable, kept_mask, transpose
from prunekern.nn import SparseLinear
from prunekern.pruning.masks import transposable_mask
from prunekern.testing import LAYOUTS, random_weight, whole_numbers
from prunekern.training import TrainableSparseLinear, freeze, make_trainable
from prunekern.training.product import decompress as decompress_by_op
from prunekern.training.product import take_kept, trainable_linear, transpose24

KERNELS = ("2:4", "csr", "bitmask")
SHAPES = ((1, 1), (4, 4), (3, 5), (17, 67), (64, 96), (70, 130))


def both_ways(N, K, dtype=torch.float32):
    weight = torch.randn(N, K)
    return weight.masked_fill(~transposable_mask(weight.abs()), 0.0).to(dtype)


def weights(kernel, N, K, dtype=torch.float32):
    """A weight of the kernel's pattern; of 2:4 also one that is so both ways."""
    yield random_weight(kernel, N, K, dtype, seed=N)
    if kernel == "2:4":
        yield both_ways(N, K, dtype)


def layer_of(weight, kernel, bias=None, layout=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return TrainableSparseLinear.from_linear(linear, kernel, layout, prune=False)


# ------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("dtype", formats.DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", (*SHAPES, (5, 64), (130, 7), (9, 131)))
def test_conversions_by_ops_equal_the_plain_ones(shape, dtype):
    weight = both_ways(*shape, dtype)
    c = compress(weight, "2:4")
    dense = torch.randn(shape).to(dtype)
    for flag in (True, False):
        assert torch.equal(bits(decompress_by_op(c)), bits(decompress(c)))
        assert torch.equal(bits(take_kept(dense, c)), bits(formats.take_kept(dense, c)))
        c = compress(random_weight("2:4", *shape, dtype), "2:4") if flag else c
    c = compress(weight, "2:4")
    if not is_transposable(c):  # a free slot of a ragged group is in the way
        assert shape[0] % 4 or shape[1] % 4
        return
    for other in (transpose24(c), transpose(c)):
        formats.validate(other)
        assert torch.equal(decompress(other), weight.t())
    assert torch.equal(transpose24(c).meta, transpose(c).meta)
    assert torch.equal(bits(transpose24(c).values), bits(transpose(c).values))


def test_half_the_shapes_above_are_transposed():
    assert all(is_transposable(compress(both_ways(4 * n, 4 * n), "2:4")) for n in (1, 3, 16))


def test_what_is_not_24_both_ways_can_not_be_transposed():
    weight = torch.zeros(4, 8)
    weight[:3, :2] = 1.0  # and in all other groups the free slots
    c = compress(weight, "2:4")
    assert not is_transposable(c)
    with pytest.raises(RuntimeError, match=r"keep at most 2 weights, got 4 groups with more"):
        transpose24(c)
    with pytest.raises(ValueError, match="must have at most 2 non-zeros"):
        transpose(c)


# ----------------------------------------------------------------------------------- gradients


def exact_gradients(x, weight, bias, grad):
    """Of x, W at the kept positions and bias, in float64."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    grads = grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2)
    return (*grads, None if bias is None else grad.flatten(0, -2).sum(0))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", formats.DTYPES, ids=lambda d: str(d)[6:])
def test_products_and_gradients_are_those_of_the_masked_dense_weight(kernel, dtype):
    for case, (N, K) in enumerate(SHAPES):
        for weight in weights(kernel, N, K, dtype):
            # Whole numbers: every sum is exact, so that one wrong position shows in any dtype.
            weight = whole_numbers(weight)
            bias = whole_numbers(torch.randn(N)).to(dtype) if case % 2 else None
            layer = layer_of(weight, kernel, bias)
            x = whole_numbers(torch.randn(2, 3, K)).to(dtype).requires_grad_()
            y = layer(x)
            grad = whole_numbers(torch.randn(y.shape)).to(dtype)
            y.backward(grad)
            wanted = nn.functional.linear(
                x.double(), weight.double(), None if bias is None else bias.double()
            )
            assert torch.equal(y, wanted.to(dtype))
            grad_x, grad_w, grad_b = exact_gradients(x, weight, bias, grad)
            assert torch.equal(x.grad, grad_x.to(dtype)), (N, K)
            kept = formats.take_kept(grad_w, layer.canonical())
            assert torch.equal(layer.values.grad, kept.to(dtype)), (N, K)
            assert layer.values.grad.dtype == layer.values.dtype
            if bias is not None:
                assert torch.equal(layer.bias.grad, grad_b.to(dtype))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(kernel):
    # The layer is linear in each argument: differences of any width are exact in whole numbers.
    for weight in weights(kernel, 8, 12):
        layer = layer_of(whole_numbers(weight), kernel)
        arguments = [whole_numbers(torch.randn(s)).requires_grad_() for s in ((3, 12), (8,))]
        values = layer.values.detach().clone().requires_grad_()

        def product(x, bias, values, layer=layer):
            shape, transposable = (8, 12), layer.transposable
            return trainable_linear(
                x, values, layer._positions(), bias, kernel, shape, "", transposable
            )

        # gradcheck wants to know of float32, whose differences are exact here.
        with pytest.warns(UserWarning, match="double precision"):
            assert torch.autograd.gradcheck(product, (*arguments, values), eps=1.0, atol=1e-4)


@pytest.mark.parametrize("layout", [n for n in LAYOUTS["sparse24"] if n in prunekern.ops.cpu_isa()])
def test_gradients_by_every_layout(layout):
    dtype = torch.bfloat16
    weight = whole_numbers(both_ways(48, 64, dtype))
    layer = layer_of(weight, "2:4", layout=layout)
    assert layer.transposable and layer.layout == layout
    x = whole_numbers(torch.randn(5, 64)).to(dtype).requires_grad_()
    grad = whole_numbers(torch.randn(5, 48)).to(dtype)
    layer(x).backward(grad)
    assert torch.equal(x.grad, (grad.double() @ weight.double()).to(dtype))


def test_the_kernel_of_the_product_makes_the_gradient_of_x(monkeypatch):
    """Where W^T is 2:4 no dense weight is made; elsewhere one is."""
    made = []
    monkeypatch.setattr(
        "prunekern.training.product.decompress", lambda c: made.append(1) or decompress(c)
    )
    for weight, dense in ((both_ways(8, 16), 0), (random_weight("2:4", 8, 16, torch.float32), 1)):
        layer = layer_of(weight, "2:4")
        assert layer.transposable is not bool(dense)
        made.clear()
        layer(torch.randn(3, 16, requires_grad=True)).sum().backward()
        assert len(made) == dense


def test_ops_are_well_formed():
    layer = layer_of(both_ways(8, 16), "2:4")
    weight = (layer.values.detach(), layer._positions(), "2:4", "", [8, 16])
    x, grad = torch.randn(3, 16), torch.randn(3, 8)
    ops = torch.ops.prunekern
    for op, arguments in (
        (ops.trainable_linear, (x, *weight, None)),
        (ops.trainable_linear_grad_x, (grad, *weight, True)),
        (ops.trainable_linear_grad_values, (grad, x, *weight)),
    ):
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(op.default, arguments, test_utils=checks)


# ---------------------------------------------------------------------------------- no stale weight


def _by_data(layer, new):
    layer.values.data.copy_(new)


def _by_new_data(layer, new):
    layer.values.data = new.clone()


def _by_numpy(layer, new):
    layer.values.detach().numpy()[:] = new.numpy()


def _in_place(layer, new):
    with torch.no_grad():
        layer.values.copy_(new)


def _by_state_dict(layer, new):
    layer.load_state_dict({**layer.state_dict(), "values": new})


def _by_a_new_parameter(layer, new):
    layer.values = nn.Parameter(new.clone())


WAYS = (_by_data, _by_new_data, _by_numpy, _in_place, _by_state_dict, _by_a_new_parameter)


@pytest.mark.parametrize("write", WAYS, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("train", (True, False))
def test_no_way_of_writing_values_leaves_an_old_weight(write, train):
    layer = layer_of(both_ways(8, 16), "2:4").train(train)
    x = torch.randn(3, 16)
    with torch.set_grad_enabled(train):
        before = layer(x).detach()
        write(layer, torch.randn(layer.values.shape))
        after = layer(x).detach()
        torch.testing.assert_close(after, x @ layer.weight.detach().t())
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("optimizer", ("AdamW", "SGD"))
def test_training_equals_masked_dense_training(kernel, optimizer):
    weight = next(iter(weights(kernel, 24, 40)))
    sparse = layer_of(weight, kernel, torch.randn(24))
    dense = copy.deepcopy(sparse).to_linear()
    mask = kept_mask(sparse.canonical()) if kernel == "2:4" else sparse.weight != 0
    optimizers = [
        getattr(torch.optim, optimizer)(m.parameters(), lr=1e-2, weight_decay=0.1)
        for m in (sparse, dense)
    ]
    for _ in range(5):
        x, target = torch.randn(16, 40), torch.randn(16, 24)
        losses = []
        for module, stepper in zip((sparse, dense), optimizers, strict=True):
            loss = (module(x) - target).square().mean()
            loss.backward()
            losses.append(loss.item())
            stepper.step()
            stepper.zero_grad()
        with torch.no_grad():
            dense.weight.masked_fill_(~mask, 0.0)
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(sparse.weight, dense.weight.detach(), atol=1e-5, rtol=1e-4)
    assert ((sparse.weight != 0) <= mask).all()


def test_optimizer_state_is_half_as_large():
    dense = nn.Linear(128, 64, bias=False)
    sparse = TrainableSparseLinear.from_linear(dense, "2:4")
    sizes = []
    for module in (dense, sparse):
        optimizer = torch.optim.Adam(module.parameters())
        module(torch.randn(4, 128)).sum().backward()
        optimizer.step()
        (state,) = optimizer.state.values()
        sizes.append(sum(t.nbytes for t in state.values() if t.dim()))
    assert sizes == [2 * 4 * 64 * 128, 4 * 64 * 128]
    assert sparse.nbytes == 64 * 128 * (2 + 1 / 8)


# ------------------------------------------------------------------ autocast, compile, checkpoints


def test_autocast_computes_in_bfloat16_and_trains_float32():
    layer = layer_of(both_ways(32, 64), "2:4", torch.randn(32))
    dense = layer.to_linear()
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = layer(x), dense(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted, atol=2e-2, rtol=2e-2)
    y.float().square().sum().backward()
    ours, layer_grad = x.grad, layer.values.grad
    assert ours.dtype == layer_grad.dtype == layer.bias.grad.dtype == torch.float32
    x.grad = None
    wanted.float().square().sum().backward()
    torch.testing.assert_close(ours, x.grad, atol=0.3, rtol=5e-2)
    kept = formats.take_kept(dense.weight.grad, layer.canonical())
    torch.testing.assert_close(layer_grad, kept, atol=0.5, rtol=5e-2)
    with pytest.raises(RuntimeError, match=r"x must have the dtype of values, torch.float32"):
        layer(x.bfloat16())


@pytest.mark.parametrize("kernel", KERNELS)
def test_compiled_training_equals_eager(kernel):
    torch._dynamo.reset()
    weight = next(iter(weights(kernel, 24, 40)))
    eager = nn.Sequential(layer_of(weight, kernel, torch.randn(24)), nn.ReLU())
    compiled_model = copy.deepcopy(eager)
    compiled = torch.compile(compiled_model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(6, 40)
        for module, call in ((eager, eager), (compiled_model, compiled)):
            call(x).square().sum().backward()
            with torch.no_grad():
                for p in module.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
    for ours, theirs in zip(compiled_model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradient_checkpointing_computes_the_same():
    model = swapped()
    ids = torch.randint(0, 128, (2, 11))
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------ models


def swapped(kernel="2:4", transposable=True, **changes):
    model = tiny_llama(**changes)
    pattern = "2:4" if kernel == "2:4" else "unstructured"
    both = transposable and kernel == "2:4"
    prunekern.prune(model, pattern, targets="all-linear", transposable=both)
    prunekern.replace_linears(model, kernel, targets="all-linear", prune=False, trainable=True)
    return model


@pytest.mark.parametrize("kernel", KERNELS)
def test_models_train_freeze_and_restore(kernel):
    model = swapped(kernel, attention_bias=True)
    layers = [m for m in model.modules() if isinstance(m, TrainableSparseLinear)]
    assert len(layers) == 14
    assert all(m.transposable for m in layers) is (kernel == "2:4")
    ids = torch.randint(0, 128, (4, 24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        wanted = model(ids).logits
        assert len(freeze(model)) == 14
        assert not any(isinstance(m, TrainableSparseLinear) for m in model.modules())
        assert sum(isinstance(m, SparseLinear) for m in model.modules()) == 14
        torch.testing.assert_close(model(ids).logits, wanted)
        assert len(make_trainable(model)) == 14
        torch.testing.assert_close(model(ids).logits, wanted)
        prunekern.restore_linears(model)
        torch.testing.assert_close(model(ids).logits, wanted, atol=1e-5, rtol=1e-4)
    assert all(p.requires_grad for p in model.parameters())
    for call, message in ((freeze, "trainable SparseLinear"), (make_trainable, "fixed Sparse")):
        with pytest.raises(ValueError, match=f"must have {message}.* layers, got none"):
            call(model)


@pytest.mark.parametrize("kernel", KERNELS)
def test_copies_pickles_and_state_dicts(kernel):
    model = swapped(kernel)
    ids = torch.randint(0, 128, (2, 9))
    with torch.no_grad():
        wanted = model(ids).logits
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for again in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(again(ids).logits, wanted)
            again.model.layers[0].self_attn.q_proj.values.zero_()
        assert torch.equal(model(ids).logits, wanted)
        state = model.state_dict()
        names = {k.rsplit(".", 1)[1] for k in state if "q_proj" in k}
        assert names == set(tensor_names(kernel))
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p.data.normal_()
        twin.load_state_dict(state)
        assert torch.equal(twin(ids).logits, wanted)
        freeze(twin)
        twin.load_state_dict(state)  # the same names and shapes, packed or not
        torch.testing.assert_close(twin(ids).logits, wanted)
    model.to(torch.bfloat16)
    assert model.model.layers[0].self_attn.q_proj.dtype == torch.bfloat16
    assert model(ids).logits.dtype == torch.bfloat16


def test_saved_and_loaded_compressed_and_trained_on(tmp_path):
    from transformers import AutoModelForCausalLM

    model = swapped()
    ids = torch.randint(0, 128, (2, 9))
    prunekern.save_pretrained(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    make_trainable(loaded)
    assert all(m.transposable for m in loaded.modules() if isinstance(m, TrainableSparseLinear))
    loaded(ids, labels=ids).loss.backward()
    model(ids, labels=ids).loss.backward()
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad)


def test_recover_trains_sparse_layers_without_a_method():
    model = swapped()
    before = copy.deepcopy(model.state_dict())
    data = torch.randint(0, 128, (4, 16))
    with pytest.raises(ValueError, match="TrainableSparseLinear, which keeps its own zeros; pass"):
        prunekern.recover(model, data)
    report = prunekern.recover(model, data, None, steps=4, lr=1e-2)
    assert report.losses[-1].total < report.losses[0].total
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) is key.endswith(".meta"), key


def test_what_does_not_require_gradients_stays_so():
    linear = nn.Linear(16, 8)
    linear.weight.requires_grad_(False)
    layer = TrainableSparseLinear.from_linear(linear, "bitmask")
    assert not layer.values.requires_grad and layer.bias.requires_grad
    layer(torch.randn(2, 16)).sum().backward()
    assert layer.values.grad is None
    assert not layer.to_linear().weight.requires_grad


def test_zeros_among_kept_weights_still_train_both_ways():
    """compress would put free slots at the lowest positions, which is not 2:4 the other way."""
    weight = both_ways(16, 16)
    weight[weight.abs() < 0.7] = 0.0
    layer = layer_of(weight, "2:4")
    assert not is_transposable(compress(weight, "2:4")) and layer.transposable
    assert torch.equal(layer.weight, weight)


def test_damage_is_refused_and_changes_nothing():
    for kernel, key, match in (
        ("2:4", "meta", "hold two positions in ascending order"),
        ("csr", "col_indices", "must lie in"),
        ("bitmask", "bitmask", "bits set"),
    ):
        layer = layer_of(random_weight(kernel, 8, 16, torch.float32), kernel)
        before = {k: v.clone() for k, v in layer.state_dict().items()}
        bad = {**before, key: torch.full_like(before[key], 255), "values": before["values"] + 1}
        with pytest.raises(RuntimeError, match=match):
            layer.load_state_dict(bad)
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    fewer = compress(random_weight("bitmask", 8, 16, torch.float32, 0.1), "bitmask").tensors()
    with pytest.raises(RuntimeError, match=r"values must have the shape \[\d+\] that is trained"):
        layer.load_state_dict(fewer)


def test_whole_numbers_are_not_trained():
    model = tiny_llama()
    with pytest.raises(ValueError, match="replace_linears: kernel must be 2:4, csr or bitmask to"):
        prunekern.replace_linears(model, "2:4-int8", trainable=True)
    assert not any(isinstance(m, SparseLinear) for m in model.modules())


def test_layouts_are_checked_when_the_layer_is_made():
    with pytest.raises(ValueError, match="layout of sparse24 must be one of"):
        layer_of(both_ways(4, 4), "2:4", layout="avx3")
    with pytest.raises(ValueError, match=r"TrainableSparseLinear.*sm80 runs on cuda, not on cpu"):
        layer_of(both_ways(4, 4, torch.float16), "2:4", layout="sm80")
