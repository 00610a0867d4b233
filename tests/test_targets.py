import pytest

from prunekern.targets import match_modules


def test_names_suffixes_expressions_and_all_linear(llama):
    model = llama()
    assert len(match_modules(model, ("q_proj", "v_proj"))) == 4
    assert list(match_modules(model, "layers.1.self_attn.k_proj")) == [
        "model.layers.1.self_attn.k_proj"
    ]
    assert list(match_modules(model, "model.layers.0.mlp.up_proj")) == [
        "model.layers.0.mlp.up_proj"
    ]
    assert len(match_modules(model, r"re:.*layers\.0\.mlp\..*")) == 3
    everything = match_modules(model, "all-linear")
    assert len(everything) == 14 and "lm_head" not in everything
    assert list(match_modules(model, "lm_head")) == ["lm_head"]


def test_a_suffix_ends_at_a_dot(llama):
    with pytest.raises(ValueError, match="got 'proj'"):
        match_modules(llama(), "proj")


def test_order_is_the_models_and_each_stands_once(llama):
    names = list(match_modules(llama(), ("v_proj", "q_proj", "layers.0.self_attn.q_proj")))
    assert [n.split(".")[2] + n.split(".")[-1] for n in names] == [
        "0q_proj", "0v_proj", "1q_proj", "1v_proj",
    ]  # fmt: skip


def test_output_embedding_is_left_alone_whatever_its_name(llama):
    model = llama(tie_word_embeddings=False)
    model.head = model.lm_head
    assert len(match_modules(model, "all-linear")) == 14
