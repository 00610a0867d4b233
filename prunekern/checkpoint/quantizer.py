"""What transformers asks when it loads a folder of ours: swap, load, check, pack.

transformers builds the model on meta, calls us, reads the files into whatever buffers there are,
and calls us again. In between no dense weight exists. Imported by `register` once transformers is
there, never before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from prunekern import formats
from prunekern.checkpoint import files
from prunekern.checkpoint.schema import (
    QUANT_METHOD,
    VERSION,
    ModuleSpec,
    parse_modules,
    parse_structure,
)
from prunekern.checkpoint.skeleton import PendingLinear, alike, resize, specs_of, swap_in, tied_keys
from prunekern.checkpoint.versions import check_transformers
from prunekern.nn import move_hooks, release_memory
from prunekern.replace import restore_linears, set_module


class PrunekernConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json, see schema.py; refused where it is not just that."""

    def __init__(
        self,
        modules: Mapping[str, Any] | None = None,
        version: int = VERSION,
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
        """Raises ValueError for whatever schema.py does not name."""
        if quant_method != QUANT_METHOD or unknown:
            raise ValueError(
                f"quantization_config: keys must be quant_method, version and modules, "
                f"got {quant_method!r:.50} and {sorted(unknown)}"
            )
        specs = parse_modules({} if modules is None else modules, version)
        self.quant_method = quant_method
        self.version = version
        self.modules = {name: spec.to_json() for name, spec in specs.items()}

    @property
    def specs(self) -> dict[str, ModuleSpec]:
        """Name -> spec of every sparse layer."""
        return parse_modules(self.modules, self.version)

    @classmethod
    def of(cls, model: nn.Module) -> PrunekernConfig:
        """What a file of the model says."""
        return cls({name: spec.to_json() for name, spec in specs_of(model).items()})


class PrunekernQuantizer(HfQuantizer):
    """Loads sparse layers without a dense copy, and layers with their own numbers of heads."""

    quantization_config: PrunekernConfig

    def __init__(self, quantization_config: PrunekernConfig, **kwargs: Any) -> None:
        """Raises ValueError for a model that is not saved by prunekern yet."""
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise ValueError(
                "from_pretrained: quantization_config must come from a file of prunekern, got one "
                "as an argument; load the model, then call prunekern.replace_linears(model)"
            )

    @classmethod
    def of(cls, model: nn.Module) -> PrunekernQuantizer:
        """What a model would have if it had been loaded with the sparse layers that it has."""
        return cls(PrunekernConfig.of(model))

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Raises ImportError or ValueError where a model could not be loaded as it was saved."""
        check_transformers("from_pretrained")
        places = set(map(str, device_map.values())) if isinstance(device_map, dict) else set()
        if self.quantization_config.modules and (
            "disk" in places or ("cpu" in places and len(places) > 1)
        ):
            raise ValueError(
                "from_pretrained: device_map must keep sparse layers where they run, got some on "
                f"{', '.join(sorted(places))}; their weights can not be offloaded"
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype itself; ValueError unless kernels take it."""
        if self.quantization_config.modules and dtype not in formats.DTYPES:
            raise ValueError(
                f"from_pretrained: dtype must be float32, bfloat16 or float16, got {dtype}"
            )
        return dtype

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if not checkpoint_files:
            raise ValueError("from_pretrained: weights must come from a folder, got a state_dict")
        if self.quantization_config.modules and getattr(model.config, "distributed_config", None):
            raise ValueError(
                "from_pretrained: distributed_config must be None, got one; sparse layers can not "
                "be cut for tensor parallelism or FSDP"
            )
        paths = [Path(file) for file in checkpoint_files]
        source = Path(model.config.name_or_path)
        infos = files.read_headers(paths, source if source.is_dir() else paths[0].parent)
        resize(model, parse_structure(getattr(model.config, "prunekern", None)))
        swap_in(model, self.quantization_config.specs, infos)
        _check_complete(model, infos)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for name, pending in list(model.named_modules()):
            if isinstance(pending, PendingLinear):
                sparse = pending.finish(name).train(pending.training)
                move_hooks(pending, sparse)
                _move_accelerate_hook(pending, sparse)
                set_module(model, name, sparse)
                release_memory()  # what checking took lies between what stays
        # What this forbids, .half() and training, a SparseLinear can do.
        model.is_quantized = False

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict]:
        """For transformers' own save_pretrained, after layers were swapped or restored."""
        model.config.quantization_config = PrunekernConfig.of(model)
        return None, {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        restore_linears(model)
        return model if dtype is None else model.to(dtype)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """State dicts hold canonical tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whatever is dense is; gradients pass through sparse layers."""
        return True


def _move_accelerate_hook(source: nn.Module, target: nn.Module) -> None:
    """The one that brings inputs to the layer's device, where a model is spread over several."""
    if hasattr(source, "_hf_hook"):
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(target, source._hf_hook)


def _check_complete(model: nn.Module, infos: Mapping[str, files.TensorInfo]) -> None:
    """Raises ValueError where transformers would make up a weight that the file lacks.

    The head of another class than the one that was saved is made up on purpose.
    """
    prefix = getattr(model, "base_model_prefix", "") + "."
    same_class = type(model).__name__ in (getattr(model.config, "architectures", None) or ())
    whole = same_class or not hasattr(model, prefix[:-1])
    tied = tied_keys(model)
    same = {source: {source} for source in tied.values()}
    for key, source in tied.items():
        same[source].add(key)
    missing = [
        key
        for key in model.state_dict()
        if (whole or key.startswith(prefix))
        and not any(
            name in infos
            for twin in same.get(tied.get(key, key), {key})
            for name in alike(twin, prefix)
        )
    ]
    if missing:
        raise ValueError(
            f"from_pretrained: the file must hold every tensor of {type(model).__name__}, "
            f"got none for {', '.join(missing[:5])}" + (" and more" if len(missing) > 5 else "")
        )
