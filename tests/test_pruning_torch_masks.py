"""Masks of torch.nn.utils.prune on a model are taken over by prune and replace_linears."""

import copy
import pickle

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

import prunekern
from prunekern.formats import FORMATS, compress, decompress
from prunekern.nn import SparseLinear
from prunekern.pruning.torch_masks import fold_masks, is_masked, masked_weight

IDS = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(9))


def masked(llama, amount=0.3, **changes):
    """A model under masks, and the same folded by torch itself."""
    model = llama(attention_bias=True, **changes)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            module = layer.self_attn.get_submodule(name)
            torch_prune.l1_unstructured(module, "weight", amount)
        torch_prune.random_unstructured(layer.self_attn.v_proj, "bias", 0.5)
        torch_prune.random_unstructured(layer.self_attn.v_proj, "weight", 0.1)  # masks add up
    folded = copy.deepcopy(strip(model))
    return model, folded


def strip(model):
    """A copy without masks: torch can not deepcopy what its hooks have computed."""
    model = pickle.loads(pickle.dumps(model))
    for module in model.modules():
        for name in ("weight", "bias"):
            if hasattr(module, f"{name}_orig"):
                torch_prune.remove(module, name)
    return model


def plain(model):
    return not any(hasattr(m, "weight_orig") or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda", "ria", "sparsegpt", "taylor"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_pruned_zeros_stay_whatever_the_method(llama, method, pattern):
    model, folded = masked(llama)
    calibration = None if method in ("magnitude", "random") else IDS
    prunekern.prune(model, pattern, method, calibration=calibration)
    assert plain(model)
    for name, module in folded.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            weight = model.get_submodule(name).weight
            assert not weight[module.weight == 0].any()
            assert not torch.signbit(weight[weight == 0]).any()
            assert isinstance(weight, nn.Parameter)
            assert torch.equal(model.get_submodule(name).bias, module.bias)
    if method in ("magnitude", "wanda", "ria"):
        prunekern.prune(folded, pattern, method, calibration=calibration)
        for name, tensor in folded.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)


def test_the_mask_counts_and_not_what_the_last_forward_left(llama):
    model, _ = masked(llama)
    module = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        module.weight_orig.mul_(2)  # as an optimizer step: module.weight is now old
    expected = module.weight_orig * module.weight_mask
    assert torch.equal(masked_weight(module), expected + 0.0)
    parameter = module.weight_orig
    fold_masks(module)
    assert module.weight is parameter and torch.equal(parameter, expected) and not is_masked(module)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_error_leaves_masks_where_they_were(llama, method):
    model, _ = masked(llama)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = float("nan")
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="finite calibration inputs"):
        prunekern.prune(model, method=method, calibration=IDS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(t, after[k]) for k, t in before.items() if "layernorm" not in k)
    assert len(model.model.layers[0].self_attn.v_proj._forward_pre_hooks) == 2


def test_an_infinite_weight_under_the_mask_is_none(llama):
    model, _ = masked(llama)
    module = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        module.weight_orig[module.weight_mask == 0] = float("inf")
    prunekern.prune(model, "2:4")
    assert torch.isfinite(module.weight).all()


def test_a_stopped_run_goes_on_under_masks(llama, tmp_path):
    model, _ = masked(llama)
    twin = pickle.loads(pickle.dumps(model))

    def stop(done, left):
        if done > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prunekern.prune(model, method="sparsegpt", calibration=IDS, state=tmp_path, progress=stop)
    assert is_masked(model.model.layers[0].self_attn.q_proj)
    prunekern.prune(model, method="sparsegpt", calibration=IDS, state=tmp_path)
    prunekern.prune(twin, method="sparsegpt", calibration=IDS)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kernel", sorted(FORMATS))
def test_replace_linears_takes_masks_over(llama, kernel):
    model, folded = masked(llama, 0.8)
    prunekern.prune(folded, "2:4")
    for layer, other in zip(model.model.layers, folded.model.layers, strict=True):
        for name in ("q_proj", "v_proj"):
            module = layer.self_attn.get_submodule(name)
            mask = other.self_attn.get_submodule(name).weight != 0
            torch_prune.custom_from_mask(module, "weight", mask)
    report = prunekern.replace_linears(model, kernel, prune=False)
    assert len(report.replaced) == 4
    for name, module in folded.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            sparse = model.get_submodule(name)
            assert isinstance(sparse, SparseLinear) and not sparse._forward_pre_hooks
            with torch.no_grad():  # int8 and int4 round
                module.weight.copy_(decompress(compress(module.weight + 0.0, kernel)))
            assert torch.equal(sparse.weight, module.weight)
            assert torch.equal(sparse.bias, module.bias)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, folded(IDS).logits, rtol=1e-4, atol=1e-5)


def test_replace_linears_refuses_before_it_folds(llama):
    model, _ = masked(llama)
    with pytest.raises(ValueError, match="must be 2:4"):
        prunekern.replace_linears(model, prune=False)
    assert is_masked(model.model.layers[0].self_attn.q_proj)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight_orig[0] = float("nan")
    with pytest.raises(ValueError, match="must have finite weights"):
        prunekern.replace_linears(model)
    assert is_masked(model.model.layers[0].self_attn.q_proj)
