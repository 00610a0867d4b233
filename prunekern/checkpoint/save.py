"""save_pretrained: a folder that from_pretrained reads back to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekern import formats
from prunekern.checkpoint.card import CARD, is_ours, write_card
from prunekern.checkpoint.files import DTYPES, INDEX, TensorInfo
from prunekern.checkpoint.folder import replaced
from prunekern.checkpoint.report import SavedCheckpoint, SavedLayer
from prunekern.checkpoint.schema import parse_structure
from prunekern.checkpoint.skeleton import resize, specs_of, swap_in, tied_keys
from prunekern.checkpoint.versions import check_transformers
from prunekern.checkpoint.writer import Part, parse_size, write_shards
from prunekern.nn import SparseLinear

_WHO = "save_pretrained"


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    max_shard_size: int | str = "5GB",
    dense: bool = False,
    compare: Any = None,
) -> SavedCheckpoint:
    """Writes a model so that `AutoModelForCausalLM.from_pretrained(folder)` gives it back.

    Sparse layers are written as canonical tensors, `<layer>.values`, `.meta` and the like: what
    formats.py says they take and nothing more. `import prunekern` must come before loading. Layers
    that structured pruning left with different sizes are rebuilt from `config.prunekern`.

    Everything is written beside `folder` and renamed at the end: an interruption leaves nothing. Of
    an existing folder, weights, config and a card of ours are replaced, all else stays. A layer
    that stands under two names is written twice.

    Args:
        model: A model of transformers, with sparse layers or without.
        folder: Made if need be.
        max_shard_size: Bytes or like "5GB": above it weights are split into several files.
        dense: Whether zeros are written out: a plain checkpoint of the same model that loads
            everywhere, and what converters to GGUF, ONNX and the like take.
        compare: A result of `prunekern.compare` whose tables go into the card, README.md.

    Returns:
        What was written, layer by layer.

    Raises:
        ValueError: Not a model of transformers, one without data, with masks or adapters or
            quantised, with sizes that its config does not say, or that can not be written dense.
        ImportError: No transformers, or a release that is not known.
    """
    check_transformers(_WHO)
    max_shard_bytes = parse_size(max_shard_size, _WHO)
    _check_model(model)
    config = _config(model, dense)
    rows: list[SavedLayer] = []
    parts = _parts(model, dense, rows)
    _check_reloads(model, config, parts)
    folder = Path(folder)
    with replaced(folder, _is_old, _WHO) as new:
        total = write_shards(new, parts, max_shard_bytes)
        config.save_pretrained(new)
        if model.can_generate():
            model.generation_config.save_pretrained(new)
        saved = SavedCheckpoint(folder, tuple(rows), total)
        if not (folder / CARD).exists() or is_ours(folder / CARD):
            write_card(new, saved, config, compare)
    return saved


def _check_model(model: nn.Module) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{_WHO}: model must be one of transformers, got {type(model).__name__}; "
            "merge adapters and unwrap it first"
        )
    quantizer = getattr(model, "hf_quantizer", None)
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    if method not in (None, "prunekern"):
        raise ValueError(f"{_WHO}: model must not be quantised, got {method}")
    for name, module in model.named_modules():
        if hasattr(module, "weight_orig"):
            raise ValueError(
                f"{_WHO}: {name} must have a plain weight, got one masked by "
                "torch.nn.utils.prune; call torch.nn.utils.prune.remove(module, 'weight') first"
            )
        if hasattr(module, "base_layer"):
            raise ValueError(f"{_WHO}: {name} must have no adapter; merge and unload it first")


def _config(model: nn.Module, dense: bool) -> Any:
    """The config that goes into the file; the model's own is left alone."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    structured = bool(parse_structure(getattr(config, "prunekern", None)))
    if dense and structured:
        raise ValueError(
            f"{_WHO}: model must have layers of one size to be written dense for others, got "
            "different heads or channels by config.prunekern; only prunekern rebuilds those"
        )
    from prunekern.checkpoint.quantizer import PrunekernConfig

    quantization = PrunekernConfig.of(model)
    if not dense and (quantization.modules or structured):
        config.quantization_config = quantization.to_dict()
    if isinstance(model.get_output_embeddings(), SparseLinear):
        config.tie_word_embeddings = False  # a pruned head stands for itself
    return config


def _parts(model: nn.Module, dense: bool, rows: list[SavedLayer]) -> list[Part]:
    """What the file will hold, in the model's order; each sparse layer adds a row when written."""
    parts = []
    tied = tied_keys(model)
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        own = dict(_own_tensors(module, prefix))
        own = {key: t for key, t in own.items() if not _is_tied(model, key, t, tied)}
        specs = {key: (t.dtype, list(t.shape)) for key, t in own.items()}
        if not isinstance(module, SparseLinear):
            if own:
                parts.append(Part(specs, own.copy))
            continue
        shape = (module.out_features, module.in_features)
        if dense:
            specs[f"{prefix}weight"] = (module.dtype, list(shape))
        else:
            wanted = formats.tensor_specs(
                module.kernel, shape, module.dtype, module.nnz, module.group_size
            )
            specs |= {prefix + key: spec for key, spec in wanted.items()}
        parts.append(Part(specs, partial(_unpacked, name, module, own, dense, rows)))
    return parts


def _unpacked(
    name: str,
    module: SparseLinear,
    own: dict[str, Tensor],
    dense: bool,
    rows: list[SavedLayer],
) -> dict[str, Tensor]:
    """The tensors of a sparse layer, when its turn has come; adds its row."""
    canonical = module.canonical()
    rows.append(SavedLayer.of(name, canonical))
    made = {"weight": formats.decompress(canonical)} if dense else canonical.tensors()
    return own | {f"{name}.{key}": t for key, t in made.items()}


def _own_tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """What the module itself, without its children, has in a state dict: a SparseLinear its bias.

    Not `state_dict()`, which would unpack all sparse layers at once.
    """
    buffers = module._buffers.items()
    lasting = [item for item in buffers if item[0] not in module._non_persistent_buffers_set]
    for key, tensor in (*module._parameters.items(), *lasting):
        if tensor is None:
            continue
        if tensor.device.type == "meta" or tensor.dtype not in DTYPES.values():
            raise ValueError(
                f"{_WHO}: {prefix}{key} must hold data of a plain dtype, got {tensor.dtype} on "
                f"{tensor.device}"
            )
        yield prefix + key, tensor.detach()


def _is_tied(model: nn.Module, key: str, tensor: Tensor, tied: dict[str, str]) -> bool:
    """Whether the tensor is written under another name, from which transformers ties it."""
    if key not in tied:
        return False
    try:
        source = model.get_parameter(tied[key])
    except AttributeError:
        return False
    return source.data_ptr() == tensor.data_ptr() and source.shape == tensor.shape


def _check_reloads(model: nn.Module, config: Any, parts: list[Part]) -> None:
    """Raises ValueError unless a model made from the config has the tensors that are written."""
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(config)).to(model.dtype)
    infos = {
        key: TensorInfo(Path(), dtype, tuple(shape))
        for part in parts
        for key, (dtype, shape) in part.specs.items()
    }
    resize(twin, parse_structure(getattr(config, "prunekern", None)))
    if hasattr(config, "quantization_config"):
        swap_in(twin, specs_of(model), infos)
    wanted = {key: list(t.shape) for key, t in twin.state_dict().items()}
    for key in sorted((infos.keys() | wanted.keys()) - set(tied_keys(twin))):
        says = wanted.get(key, "none")
        got = list(infos[key].shape) if key in infos else "none"
        if says != got:
            raise ValueError(
                f"{_WHO}: {key} must have the shape that model.config says, {says}, got {got}; "
                "sizes of single layers belong into config.prunekern"
            )


def _is_old(name: str) -> bool:
    """What of an earlier checkpoint goes when a new one takes its place."""
    return name == INDEX or (name.startswith("model") and name.endswith(".safetensors"))
