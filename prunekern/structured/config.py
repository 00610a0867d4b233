"""A model's config, made to say what its modules are after something was removed.

Uniform sizes go where transformers looks for them, so that its own `save_pretrained` and
`from_pretrained` work. Sizes that differ from layer to layer, for which its configs have no place,
are noted beside them:

    config.prunekern = {"heads": {"0": [query, key_value], ...}, "channels": {"0": channels, ...}}

Each key is there only if its sizes differ, and then lists every layer.
"""

from __future__ import annotations

import importlib

from torch import nn

from prunekern.structured.model import channel_count, head_counts

NOTE = "prunekern"


def sync_config(model: nn.Module) -> str:
    """Sets sizes in the config from the modules; returns what a user should know, or "".

    `LlamaConfig` refuses a width that is no multiple of the number of heads, though the model has
    no need of it: 24 heads at a width of 4096. Such a model becomes a Mistral model without a
    sliding window, which computes the same to the bit, has the same names, and takes any number.
    """
    layers = model.model.layers
    config = model.config
    heads = [head_counts(layer) for layer in layers]
    channels = [channel_count(layer) for layer in layers]
    hidden = model.get_input_embeddings().embedding_dim
    note = dict(getattr(config, NOTE, None) or {})
    note.pop("heads", None)
    note.pop("channels", None)
    message = ""
    uniform = len(set(heads)) == 1
    queries = heads[0][0] if uniform else config.num_attention_heads
    if not plain_config_takes(config, queries, hidden):
        if can_be_mistral(config):
            config = _become_mistral(model)
            message = (
                f"LlamaConfig takes no {queries} heads at a width of {hidden}: the model is now a "
                "MistralForCausalLM, which computes the same"
            )
        else:
            uniform = False
            message = (
                f"LlamaConfig takes no {queries} heads at a width of {hidden}, nor Mistral the "
                "biases: the head counts are noted in config.prunekern"
            )
    if uniform:
        config.num_attention_heads, config.num_key_value_heads = heads[0]
    else:
        note["heads"] = {str(i): list(pair) for i, pair in enumerate(heads)}
    if len(set(channels)) == 1:
        config.intermediate_size = channels[0]
    else:
        note["channels"] = {str(i): count for i, count in enumerate(channels)}
    # Never again to be derived from a width and a number of heads that it no longer follows from.
    config.head_dim = layers[0].self_attn.head_dim
    config.hidden_size = hidden
    config.num_hidden_layers = len(layers)
    if note:
        setattr(config, NOTE, note)
    elif hasattr(config, NOTE):
        delattr(config, NOTE)
    return message


def plain_config_takes(config, heads: int, hidden: int) -> bool:
    """Whether transformers would save and load the config with these sizes."""
    return config.model_type != "llama" or hidden % heads == 0


def can_be_mistral(config) -> bool:
    """Whether a Llama model has nothing that Mistral lacks."""
    return config.model_type == "llama" and not (config.attention_bias or config.mlp_bias)


def _become_mistral(model: nn.Module):
    """Gives every module the Mistral class of its name; returns the new config."""
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    mistral = importlib.import_module("transformers.models.mistral.modeling_mistral")
    old = model.config
    settings = old.to_dict()
    for key in ("attention_bias", "mlp_bias", "pretraining_tp", "model_type", "architectures"):
        settings.pop(key, None)
    config = mistral.MistralConfig(**{**settings, "sliding_window": None})
    config._attn_implementation = old._attn_implementation
    for module in model.modules():
        if type(module).__module__ == llama.__name__:
            name = type(module).__name__.replace("Llama", "Mistral", 1)
            module.__class__ = getattr(mistral, name)
        if getattr(module, "config", None) is old:
            module.config = config
    return config
