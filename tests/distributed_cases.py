"""What tests/test_distributed.py runs in several processes:

    torchrun --nproc-per-node 2 tests/distributed_cases.py RESULTS CASE ...

Each case runs on all processes, one after the other; RESULTS.<rank>.json says how each ended. All
processes make the same model from the same seed, and compare with what one process computes.
"""

import copy
import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import VOCABULARY, bits, tiny_llama
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import prunekern
from prunekern.distributed import (
    ColwiseParallel,
    RowwiseParallel,
    clip_grad_norm_,
    gather,
    parallelize,
)
from prunekern.nn import SparseLinear
from prunekern.testing import random_weight, whole_numbers
from prunekern.training import TrainableSparseLinear, freeze

KERNELS = ("2:4", "csr", "bitmask")
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}


def swapped(kernel="2:4", trainable=True, seed=7, **changes):
    torch.manual_seed(seed)
    model = tiny_llama(**{**HEADS, "attention_bias": True, **changes})
    both = kernel == "2:4"
    pattern = "2:4" if both else "unstructured"
    prunekern.prune(model, pattern, targets="all-linear", transposable=both)
    prunekern.replace_linears(model, kernel, targets="all-linear", prune=False, trainable=trainable)
    return model


def batch(rows=4, seed=3):
    return torch.randint(0, VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(seed))


def train(model, ids, steps=3, clip=True):
    """Losses and norms of gradients of a few steps of AdamW with clipping."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses, norms = [], []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        loss.backward()
        if clip:
            norms.append(clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses + norms)


def whole(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


def equal_states(ours, theirs, exact=True):
    """State dicts, whatever is cut in them, compared as whole tensors."""
    ours = {k.removeprefix("module."): v for k, v in ours.items()}
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        mine = whole(ours[key])
        assert mine.shape == tensor.shape and mine.dtype == tensor.dtype, key
        if exact:
            assert torch.equal(bits(mine), bits(tensor)), key
        else:
            torch.testing.assert_close(mine, tensor, atol=2e-5, rtol=2e-4, msg=key)


# ------------------------------------------------------------------------------------- DDP, FSDP2


def ddp_equals_one_process():
    for kernel in KERNELS:
        one, model = swapped(kernel), swapped(kernel)
        many = DistributedDataParallel(model)
        rank, size = dist.get_rank(), dist.get_world_size()
        ids = batch(2 * size)
        wanted = train(one, ids)
        ours = train(many, ids[2 * rank : 2 * rank + 2])
        dist.all_reduce(ours)  # losses of parts; norms are those of the mean gradient already
        torch.testing.assert_close(ours / size, wanted, atol=1e-5, rtol=1e-5)
        equal_states(model.state_dict(), one.state_dict(), exact=False)


def ddp_on_equal_batches_is_one_process_to_the_bit():
    """The mean of two or four equal gradients is each of them."""
    one, model = swapped(), swapped()
    assert torch.equal(train(DistributedDataParallel(model), batch()), train(one, batch()))
    equal_states(model.state_dict(), one.state_dict())


def fsdp2_equals_one_process():
    for kernel in KERNELS:
        one, model = swapped(kernel), swapped(kernel)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        values = model.model.layers[0].mlp.up_proj.values
        assert isinstance(values, DTensor)
        assert values.to_local().numel() <= -(-values.numel() // dist.get_world_size()) + 64
        # The norm of all gradients is summed in another order; the rest has one.
        losses = [train(m, batch()) for m in (one, model)]
        torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
        equal_states(model.state_dict(), one.state_dict(), exact=False)
        state = {k: whole(v) for k, v in model.state_dict().items()}
        again = swapped(kernel)
        again.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(again(batch()).logits, model(batch()).logits)


def fsdp2_steps_without_clipping_to_the_bit():
    one, model = swapped(), swapped()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert torch.equal(*(train(m, batch(), clip=False) for m in (one, model)))
    equal_states(model.state_dict(), one.state_dict())


def fsdp2_of_fixed_weights():
    """Packed ones stay whole; values that are not trained are shared out."""
    for kernel in KERNELS:
        one = swapped(kernel, trainable=False)
        packed = copy.deepcopy(one)
        shared = swapped(kernel)
        for module in shared.modules():
            if isinstance(module, TrainableSparseLinear):
                module.values.requires_grad_(False)
        before = {k: v.clone() for k, v in one.state_dict().items() if k.endswith(".values")}
        for model in (packed, shared):
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
        losses = [train(m, batch()) for m in (one, packed, shared)]
        for other in losses[1:]:
            torch.testing.assert_close(other, losses[0], atol=1e-5, rtol=1e-5)
        for model in (packed, shared):
            state = model.state_dict()
            for key, values in before.items():
                assert torch.equal(whole(state[key]), values)


# -------------------------------------------------------------------------------- tensor parallel


def tensor_parallel_trains_as_one_process():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    one, model = swapped(), swapped()
    assert len(parallelize(model, mesh)) == 14
    local = model.model.layers[0].mlp.down_proj.part()
    assert local.shape == (64, 96 // mesh.size())
    losses = [train(m, batch()) for m in (one, model)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    equal_states(model.state_dict(), one.state_dict(), exact=False)
    trained = {k: whole(v) for k, v in model.state_dict().items()}
    assert len(gather(model)) == 14
    equal_states(model.state_dict(), trained)
    with torch.no_grad():
        wanted = model(batch()).logits
        freeze(model)
        torch.testing.assert_close(model(batch()).logits, wanted)


def tensor_parallel_runs_fixed_weights():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for kernel in KERNELS:
        one, model = swapped(kernel, trainable=False), swapped(kernel, trainable=False)
        parallelize(model, mesh)
        with torch.no_grad():
            wanted = one(batch()).logits
            torch.testing.assert_close(model(batch()).logits, wanted, atol=1e-5, rtol=1e-4)
            state = one.state_dict()
            equal_states(model.state_dict(), state)
            for key in state:
                if key.endswith(".values"):
                    state[key] = state[key] * 2
            model.load_state_dict(state)  # whole tensors into parts
            one.load_state_dict(state)
            wanted = one(batch()).logits
            torch.testing.assert_close(model(batch()).logits, wanted, atol=1e-5, rtol=1e-4)
            model.load_state_dict(model.state_dict())
            equal_states(model.state_dict(), state)
        try:
            model.model.layers[0].mlp.up_proj.canonical()
        except ValueError as error:
            assert "weight must be whole, got a part of [96, 64]" in str(error)
        else:
            raise AssertionError("a part was taken for the weight")
        gather(model)
        equal_states(model.state_dict(), state)
        assert type(model.model.layers[0].mlp.up_proj) is SparseLinear
        with torch.no_grad():
            assert torch.equal(model(batch()).logits, wanted)


def a_cut_layer_is_whole_to_the_bit():
    """Whole numbers: a sum of parts is exact, so that one wrong index shows."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for N, K, kernel, style in (
        (11, 37, "2:4", ColwiseParallel),
        (64, 31, "csr", ColwiseParallel),
        (50, 64, "bitmask", ColwiseParallel),
        (9, 16 * mesh.size() - 1, "2:4", RowwiseParallel),
        (12, 11, "csr", RowwiseParallel),
        (12, 21, "bitmask", RowwiseParallel),
    ):
        torch.manual_seed(5)
        linear = nn.Linear(K, N)
        linear.weight.data = whole_numbers(random_weight(kernel, N, K, torch.float32))
        linear.bias.data = whole_numbers(torch.randn(N))
        trained = kernel == "2:4"
        kind = TrainableSparseLinear if trained else SparseLinear
        layers = [kind.from_linear(copy.deepcopy(linear), kernel) for _ in range(2)]
        parallelize_module(
            layers[1], mesh, style(input_layouts=Replicate(), output_layouts=Replicate())
        )
        inputs = [whole_numbers(torch.randn(5, K)) for _ in range(1)] * 2
        inputs = [x.clone().requires_grad_() for x in inputs]
        grad = whole_numbers(torch.randn(5, N))
        outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        assert torch.equal(*outputs), (kernel, style)
        for y in outputs:
            y.backward(grad)
        assert torch.equal(inputs[0].grad, inputs[1].grad), (kernel, style)
        for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
            assert torch.equal(a, whole(b)) and torch.equal(a.grad, whole(b.grad)), (kernel, style)


def what_can_not_be_cut_is_refused_before_anything_changes():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}
    for model, message in (
        (swapped(intermediate_size=92), "down_proj: in_features must be cut at multiples of 8"),
        (swapped(**heads), "must get whole heads of 16"),
        (swapped("csr"), "q_proj: a layer that is trained must be 2:4, got csr"),
    ):
        classes = [type(m) for m in model.modules()]
        try:
            parallelize(model, mesh)
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"not refused: {message}")
        assert classes == [type(m) for m in model.modules()]
        model(batch())
    model = swapped()
    parallelize(model, mesh)
    try:
        parallelize(model, mesh)
    except ValueError as error:
        assert "must be whole, got one that is cut" in str(error)
    else:
        raise AssertionError("cut twice")


def two_dimensions():
    """FSDP2 over tensor parallel parts."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    one, model = swapped(), swapped()
    parallelize(model, mesh["tp"])
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    losses = [train(m, batch()) for m in (one, model)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    equal_states(model.state_dict(), one.state_dict(), exact=False)


# ------------------------------------------------------------------------------------- checkpoints


KINDS = ("tp-2:4", "fsdp-2:4", "fsdp-csr", "fixed-2:4", "fixed-csr", "fixed-bitmask")


def whole_model(kind, seed=7):
    style, _, kernel = kind.partition("-")
    return swapped(kernel, trainable=style != "fixed", seed=seed)


def parts(kind, seed=7):
    """That model, cut as `kind` says."""
    model = whole_model(kind, seed)
    if kind.startswith("fsdp"):
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    else:
        parallelize(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def state_of(model):
    """State dicts of a model and of an Adam whose moments are three and nine times the weights."""
    optimizer = torch.optim.Adam(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            optimizer.state[p]["exp_avg"].copy_(p).mul_(3)
            optimizer.state[p]["exp_avg_sq"].copy_(p).mul_(9)
    states = get_state_dict(model, optimizer)
    return optimizer, dict(zip(("model", "optimizer"), states, strict=True))


def save_parts(folder):
    for kind in KINDS:
        _, states = state_of(parts(kind))
        dcp.save(states, checkpoint_id=folder / kind.replace(":", ""))


def load_parts(folder):
    """What any other number of processes saved, to the bit, into a model of another mask."""
    for kind in KINDS:
        check_loads(parts(kind, seed=8), kind, folder)


def check_loads(model, kind, folder):
    optimizer, states = state_of(model)
    dcp.load(states, checkpoint_id=folder / kind.replace(":", ""))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
    )
    wanted = whole_model(kind)
    equal_states(model.state_dict(), wanted.state_dict())
    for p, q in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(whole(optimizer.state[p]["exp_avg"]), 3 * q)
        assert torch.equal(whole(optimizer.state[p]["exp_avg_sq"]), 9 * q)
    with torch.no_grad():
        logits = model(batch()).logits
        torch.testing.assert_close(logits, wanted(batch()).logits, atol=1e-5, rtol=1e-4)


def main():
    results, *cases = sys.argv[1:]
    dist.init_process_group("gloo")
    ended = {}
    for case in cases:
        name, _, folder = case.partition("=")
        try:
            globals()[name](*([Path(folder)] if folder else []))
            ended[case] = ""
        except BaseException:
            ended[case] = traceback.format_exc()
        Path(f"{results}.{dist.get_rank()}.json").write_text(json.dumps(ended))
        if ended[case]:
            break  # the other processes may wait for this one: let torchrun end them
    else:
        dist.barrier()
        dist.destroy_process_group()
    sys.exit(any(ended.values()))


if __name__ == "__main__":
    main()
