"""Small random models of each family that can be cut, and what their tests compare."""

import torch

FAMILIES = ("llama", "llama_mha", "llama_bias", "llama_tied", "mistral", "qwen2", "qwen3")
_CHANGES = {
    "llama_mha": {"num_key_value_heads": 8},
    "llama_bias": {"attention_bias": True, "mlp_bias": True},
    "llama_tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
}


def make(family, **changes):
    """Three layers; norms and biases random, as they are all ones and zeros in a new model."""
    import transformers

    name = family.partition("_")[0].capitalize()
    settings = {
        "vocab_size": 128,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "eos_token_id": None,
        **_CHANGES.get(family, {}),
        **changes,
    }
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.05))
    return model


def tokens(batch=2, length=12):
    return torch.randint(0, 128, (batch, length))


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def untouched(model, before, config):
    """Nothing of the model or its config changed."""
    now = model.state_dict()
    return (
        now.keys() == before.keys()
        and all(torch.equal(now[name], before[name]) for name in now)
        and model.config.to_dict() == config
        and all(p.requires_grad for p in model.parameters())
    )


def reloaded(model, folder):
    """The model as plain transformers saves and loads it."""
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()
