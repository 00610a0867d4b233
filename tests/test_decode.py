"""Greedy decoding with one compiled step: the tokens that transformers' own loop writes."""

import pytest
import torch

import prunekern
from prunekern import decode
from prunekern.decode import Decoder

IDS = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(5))


def theirs(model, ids, new, **settings):
    mask = torch.ones_like(ids)
    settings = {"do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(ids, attention_mask=mask, max_new_tokens=new, **settings)[
        :, ids.shape[1] :
    ]


@pytest.fixture
def model(llama):
    made = llama(max_position_embeddings=1024)
    made.generation_config.eos_token_id = None
    with torch.no_grad():
        for parameter in made.parameters():  # else all tokens are about equally likely
            parameter.mul_(3) if parameter.ndim > 1 else None
    return made


@pytest.fixture
def sparse(model):
    prunekern.prune(model, targets=("all-linear", "lm_head"))
    prunekern.replace_linears(model, targets=("all-linear", "lm_head"), fuse=True)
    return model


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_tokens_are_those_of_transformers(sparse, compiled):
    decoder = Decoder(sparse, compiled, backend="aot_eager")
    first = decoder.generate(IDS, 12)
    assert torch.equal(first.tokens, theirs(sparse, IDS, 12))
    assert (first.compile_seconds > 0) == compiled
    assert len(first.step_seconds) == 11 - compiled and first.tokens_per_s > 0
    # Another prompt in the same cache, which is empty again; nothing is compiled anew.
    other = IDS.flip(0, 1)[:, :5]
    again = decoder.generate(other, 7)
    assert torch.equal(again.tokens, theirs(sparse, other, 7))
    assert (again.compile_seconds, len(again.step_seconds)) == (0, 6)


def test_dense_models_and_long_texts(model):
    decoder = Decoder(model, compiled=False)
    ids = torch.randint(3, 128, (1, 250))
    assert torch.equal(decoder.generate(ids, 20).tokens, theirs(model, ids, 20))
    assert sorted(decoder._caches) == [(1, 512)]


def test_a_second_decoder_finds_the_graph_of_the_first(sparse):
    Decoder(sparse, backend="aot_eager").generate(IDS, 4)
    again = Decoder(sparse, backend="aot_eager").generate(IDS, 4)
    assert again.compile_seconds == 0


def test_changed_layers_are_compiled_anew(sparse):
    decoder = Decoder(sparse, backend="aot_eager")
    decoder.generate(IDS, 4)
    prunekern.restore_linears(sparse)
    torch.nn.init.normal_(sparse.lm_head.weight)
    assert torch.equal(decoder.generate(IDS, 6).tokens, theirs(sparse, IDS, 6))


def test_sequences_end_at_their_token(model):
    free = decode.generate(model, IDS, 12, compiled=False).tokens
    end = int(free[0, 3])
    ended = decode.generate(model, IDS, 12, compiled=False, eos=[end]).tokens
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        size = whole.index(end) + 1 if end in whole else len(row)
        assert row[:size] == whole[:size] and set(row[size:]) <= {end}
    model.generation_config.eos_token_id = [end, 1]
    assert torch.equal(decode.generate(model, IDS, 12, compiled=False).tokens, ended)
    one = decode.generate(model, IDS[:1], 12, compiled=False)
    assert one.tokens.shape == (1, free[0].tolist().index(end) + 1)


def test_inside_and_outside_of_inference_mode(sparse):
    decoder = Decoder(sparse, compiled=False)
    with torch.inference_mode():
        inside = decoder.generate(IDS + 0, 5)
    assert torch.equal(decoder.generate(IDS, 5).tokens, inside.tokens)
    assert not torch.is_inference(inside.tokens)


@pytest.mark.slow
def test_inductor_writes_what_transformers_writes_on_the_default_model():
    from prunekern.cli.common import load

    model, tokenizer = load(None, "float32", "test")
    prunekern.prune(model, "unstructured", sparsity=0.2, targets="all-linear")
    prunekern.replace_linears(model, "bitmask", "all-linear", fuse=True)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    made = prunekern.generate(model, ids, 40, eos=())
    wanted = theirs(model, ids, 40, eos_token_id=None)
    assert torch.equal(made.tokens, wanted)
    assert made.compile_seconds > 0


def test_wrong_input_says_what_to_do(model):
    for ids, new, message in (
        (IDS[0], 4, r"input_ids must be int64 \[batch, tokens\] .* got torch.int64 \[9\]"),
        (IDS.float(), 4, "input_ids must be int64"),
        (IDS[:, :0], 4, "with one token or more"),
        (IDS, 0, "max_new_tokens must be 1 or more, got 0"),
        (IDS, 2000, "at most 1024 tokens for this model, got 9 and 2000"),
    ):
        with pytest.raises(ValueError, match=message):
            prunekern.generate(model, ids, new)
    with pytest.raises(ValueError, match=r"must be a causal language model .* got Linear"):
        prunekern.generate(torch.nn.Linear(2, 2), IDS)
