"""A model on the meta device, brought into the shape of what a file holds: no weight is made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunekern import formats
from prunekern.checkpoint.files import TensorInfo
from prunekern.checkpoint.schema import ModuleSpec, Structure
from prunekern.nn import SparseLinear


class PendingLinear(nn.Module):
    """A SparseLinear whose tensors are on their way: buffers on meta, named as in the file."""

    def __init__(self, spec: ModuleSpec, linear: nn.Linear, specs: formats.Specs) -> None:
        """Takes the place of `linear`, whose dtype the floats will have and whose bias stays."""
        super().__init__()
        self.spec = spec
        for name, (dtype, shape) in specs.items():
            dtype = linear.weight.dtype if dtype.is_floating_point else dtype
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        self.register_parameter("bias", linear.bias)

    def finish(self, name: str) -> SparseLinear:
        """The layer, packed for this machine, once all tensors are there.

        Raises:
            ValueError: The tensors are not what the format demands.
        """
        names = formats.tensor_names(self.spec.format)
        tensors = {key: _aligned(getattr(self, key)) for key in names}
        canonical = formats.from_tensors(self.spec.format, tensors, self.spec.shape)
        formats.validate(canonical, name)
        return SparseLinear(canonical, self.bias)


def specs_of(model: nn.Module) -> dict[str, ModuleSpec]:
    """Name -> spec of every sparse layer of a model."""
    return {
        name: ModuleSpec(module.kernel, (module.out_features, module.in_features))
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLinear)
    }


def resize(model: nn.Module, structure: Structure) -> None:
    """Gives single decoder layers of a model on meta their own numbers of heads and channels.

    Raises:
        ValueError: The model has no such layers, or they are not built as Llama's are.
    """
    if not structure:
        return
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"config.prunekern: model must have decoder layers as Llama has, "
            f"got {type(model).__name__}"
        )
    beyond = [i for i in (*structure.heads, *structure.channels) if i >= len(layers)]
    if beyond:
        raise ValueError(f"config.prunekern: layers must be below {len(layers)}, got {beyond}")
    for i, (query, groups) in structure.heads.items():
        attention = _child(layers[i], i, "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"))
        head_dim = getattr(attention, "head_dim", None)
        if type(head_dim) is not int:
            raise ValueError(f"config.prunekern: layer {i} must have a head_dim, got {head_dim!r}")
        _resize_linear(attention.q_proj, out_features=query * head_dim)
        for projection in (attention.k_proj, attention.v_proj):
            _resize_linear(projection, out_features=groups * head_dim)
        _resize_linear(attention.o_proj, in_features=query * head_dim)
        _set_heads(attention, query, groups)
    for i, width in structure.channels.items():
        mlp = _child(layers[i], i, "mlp", ("gate_proj", "up_proj", "down_proj"))
        _resize_linear(mlp.gate_proj, out_features=width)
        _resize_linear(mlp.up_proj, out_features=width)
        _resize_linear(mlp.down_proj, in_features=width)
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = width


def _set_heads(attention: nn.Module, query: int, groups: int) -> None:
    """The numbers that an attention module computes with, under the names that it has."""
    attention.num_key_value_groups = query // groups
    for name, value in (
        ("num_heads", query),
        ("num_attention_heads", query),
        ("num_key_value_heads", groups),
    ):
        if hasattr(attention, name):
            setattr(attention, name, value)


def swap_in(
    model: nn.Module, specs: Mapping[str, ModuleSpec], infos: Mapping[str, TensorInfo]
) -> None:
    """Puts a PendingLinear in the place of every layer that a file holds compressed.

    A model without a head takes what is its own of a file with one, and the other way round.

    Raises:
        ValueError: A layer that the model lacks, of another shape, or whose tensors are missing,
            of the wrong dtype or size, or beside its dense weight.
    """
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    prefix = getattr(model, "base_model_prefix", "") + "."
    headless = not hasattr(model, prefix[:-1])
    for name, spec in specs.items():
        here = next((n for n in alike(name, prefix) if n in linears), None)
        if here is None:
            if headless and not name.startswith(prefix):
                continue  # of the head
            raise ValueError(f"quantization_config: {name} must be an nn.Linear of the model")
        linear = linears[here]
        if tuple(linear.weight.shape) != spec.shape:
            raise ValueError(
                f"quantization_config: shape of {name} must be {list(linear.weight.shape)} as in "
                f"the model, got {list(spec.shape)}"
            )
        partner = tied_keys(model).get(f"{here}.weight")
        if partner is not None:
            raise ValueError(f"quantization_config: {name} must not be tied to {partner}")
        tensors = check_tensors(name, spec, infos, linear.bias is not None)
        parent, _, child = here.rpartition(".")
        setattr(model.get_submodule(parent), child, PendingLinear(spec, linear, tensors))


def tied_keys(model: nn.Module) -> dict[str, str]:
    """Tensor -> tensor that transformers makes it the same as."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def alike(name: str, prefix: str) -> tuple[str, str, str]:
    """A name as it is, inside a base model, and of that base model."""
    return name, name.removeprefix(prefix), prefix + name


def check_tensors(
    name: str, spec: ModuleSpec, infos: Mapping[str, TensorInfo], has_bias: bool
) -> formats.Specs:
    """Tensor -> dtype and shape of a layer in a file; ValueError unless they are right."""
    bits = formats.FORMATS[spec.format].bits
    key = "scales" if bits else "values"
    floats = infos.get(f"{name}.{key}")
    if floats is None or floats.dtype not in formats.DTYPES:
        raise ValueError(
            f"{name}: {key} must be in the file as float32, bfloat16 or float16, "
            f"got {'nothing' if floats is None else floats.dtype}"
        )
    nnz = floats.shape[0] if len(floats.shape) == 1 else 0
    if nnz > spec.shape[0] * spec.shape[1]:
        raise ValueError(f"{name}: values must be fewer than weights {spec.shape}, got {nnz}")
    group_size = None
    if bits:
        try:
            group_size = formats.group_size_of(spec.shape[1], floats.shape[-1])
        except (IndexError, ValueError) as error:
            raise ValueError(f"{name}: {error}, shape {list(floats.shape)}") from None
    wanted = formats.tensor_specs(spec.format, spec.shape, floats.dtype, nnz, group_size)
    for key, (dtype, shape) in wanted.items():
        info = infos.get(f"{name}.{key}")
        got = None if info is None else (info.dtype, list(info.shape))
        if got != (dtype, shape):
            raise ValueError(f"{name}: {key} must be {dtype} {shape}, got {got or 'nothing'}")
    known = set(wanted) | ({"bias"} if has_bias else set())
    extra = [k for k in infos if k.rpartition(".")[0] == name and k.rpartition(".")[2] not in known]
    if extra:
        raise ValueError(f"{name}: tensors must be {sorted(known)}, got {extra} besides")
    return wanted


def _aligned(t: torch.Tensor) -> torch.Tensor:
    """At a multiple of its element size, as kernels want it; a mapped file may have it anywhere."""
    return t.clone() if t.data_ptr() % t.element_size() else t


def _child(layer: nn.Module, index: int, name: str, linears: tuple[str, ...]) -> nn.Module:
    module = getattr(layer, name, None)
    if not all(isinstance(getattr(module, child, None), nn.Linear) for child in linears):
        raise ValueError(
            f"config.prunekern: layer {index} must have Linear layers {', '.join(linears)} in "
            f"{name}, got {type(layer).__name__}"
        )
    return module


def _resize_linear(
    linear: nn.Linear, out_features: int | None = None, in_features: int | None = None
) -> None:
    linear.out_features = out_features or linear.out_features
    linear.in_features = in_features or linear.in_features
    weight = linear.weight
    linear.weight = nn.Parameter(weight.new_empty(linear.out_features, linear.in_features))
    if linear.bias is not None:
        linear.bias = nn.Parameter(weight.new_empty(linear.out_features))
