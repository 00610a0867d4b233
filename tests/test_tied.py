"""A head that shares its weight with the input embedding: as a target it stands for itself."""

import pytest
import torch

import prunekern
from prunekern.nn import SparseLinear
from prunekern.pruning.masks import choose_mask
from prunekern.tied import tied_head

HEADED = ("all-linear", "lm_head")


@pytest.fixture
def tied(llama):
    model = llama(tie_word_embeddings=True)
    assert tied_head(model) is model.lm_head
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 128, (3, 24))


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("method", ["magnitude", "taylor", "wanda", "ria", "sparsegpt"])
def test_every_method_prunes_the_head_and_not_the_embedding(tied, ids, method):
    embedding = tied.model.embed_tokens.weight.detach().clone()
    calibration = {} if method == "magnitude" else {"calibration": ids, "window": 24}
    report = prunekern.prune(tied, "2:4", method, targets=HEADED, **calibration)
    assert [layer.name for layer in report.layers][-1] == "lm_head"
    assert torch.equal(tied.model.embed_tokens.weight, embedding)
    assert (tied.lm_head.weight == 0).float().mean() == 0.5
    assert tied_head(tied) is None and tied.config.tie_word_embeddings is False


def test_the_heads_inputs_are_those_of_the_pruned_model(tied, ids):
    dense = tied.lm_head.weight.detach().clone()
    prunekern.prune(tied, "2:4", "wanda", targets=HEADED, calibration=ids, window=24)
    with torch.no_grad():
        norms = tied.model(ids).last_hidden_state.flatten(0, 1).norm(dim=0)
    mask = choose_mask(dense.abs() * norms, (2, 4), None, "row")
    assert torch.equal(tied.lm_head.weight != 0, mask)


def test_a_run_that_was_stopped_goes_on_with_the_head(llama, ids, tmp_path):
    whole = llama(tie_word_embeddings=True)
    stopped = llama(tie_word_embeddings=True)
    stopped.load_state_dict(whole.state_dict())
    arguments = {"targets": HEADED, "calibration": ids, "window": 24}
    prunekern.prune(whole, "2:4", "sparsegpt", **arguments)

    class Stop(Exception):
        pass

    def stop(share, seconds):
        if share > 0.9:
            raise Stop

    arguments["state"] = tmp_path
    with pytest.raises(Stop):
        prunekern.prune(stopped, "2:4", "sparsegpt", progress=stop, **arguments)
    assert tied_head(stopped) is stopped.lm_head and stopped.config.tie_word_embeddings
    prunekern.prune(stopped, "2:4", "sparsegpt", **arguments)
    assert (tmp_path / "layer-00002.safetensors").exists()  # two decoder layers, and the head
    assert all(torch.equal(t, whole.state_dict()[k]) for k, t in stopped.state_dict().items())


@pytest.mark.parametrize("prune_first", [True, False])
def test_swapped_head_leaves_the_embedding_dense(tied, ids, prune_first):
    embedding = tied.model.embed_tokens.weight.detach().clone()
    if prune_first:
        prunekern.prune(tied, targets=HEADED)
    report = prunekern.replace_linears(tied, targets=HEADED)
    assert isinstance(tied.lm_head, SparseLinear)
    assert torch.equal(tied.model.embed_tokens.weight, embedding)
    head = report.layers[-1]
    assert (head.name, head.bytes_before) == ("lm_head", embedding.nbytes * prune_first)
    assert head.bytes_after == tied.lm_head.nbytes
    wanted = logits(tied, ids)
    prunekern.restore_linears(tied)
    assert tied.lm_head.weight is not tied.model.embed_tokens.weight
    torch.testing.assert_close(logits(tied, ids), wanted)


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("ours", [True, False], ids=["prunekern", "transformers"])
def test_both_weights_are_in_the_file(tied, ids, tmp_path, swap, ours):
    from transformers import AutoModelForCausalLM

    prunekern.prune(tied, targets="lm_head")
    if swap:
        prunekern.replace_linears(tied, targets="lm_head", prune=False)
    if ours:
        prunekern.save_pretrained(tied, tmp_path)
    else:
        tied.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again.lm_head.weight, tied.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight, tied.model.embed_tokens.weight)
    assert torch.equal(logits(again, ids), logits(tied, ids))


def test_a_refused_call_leaves_the_tie(tied):
    for call in (
        lambda: prunekern.prune(tied, "2:4", "wanda", targets=HEADED),
        lambda: prunekern.replace_linears(tied, targets=HEADED, prune=False),
        lambda: prunekern.prune(tied, targets=HEADED, method="movement"),
    ):
        with pytest.raises(ValueError):
            call()
        assert tied_head(tied) is tied.lm_head and tied.config.tie_word_embeddings


def test_heads_of_their_own_and_other_targets_are_left_alone(llama, tied):
    own = llama()
    assert tied_head(own) is None
    prunekern.prune(tied, targets="all-linear")
    assert tied_head(tied) is tied.lm_head and tied.config.tie_word_embeddings
