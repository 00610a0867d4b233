"""Which releases of transformers files are loaded with, and how ours is made known to them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from prunekern.checkpoint.schema import QUANT_METHOD

# Tried: 5.0, 5.12, 5.23, 5.24. Before 5 weights were loaded in another way; what a later major
# changes is not known.
_OLDEST, _TOO_NEW = (5, 0), (6, 0)

_TABLES = "transformers.quantizers.auto"  # where quantizers are looked up by name


def check_transformers(who: str) -> None:
    """Raises ImportError unless transformers is there in a release that this is made for."""
    try:
        import transformers
    except ImportError:
        raise ImportError(
            f"{who}: transformers must be installed; pip install transformers"
        ) from None
    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not _OLDEST <= found < _TOO_NEW:
        oldest, too_new = (".".join(map(str, version)) for version in (_OLDEST, _TOO_NEW))
        raise ImportError(
            f"{who}: transformers must be at least {oldest} and below {too_new}, "
            f"got {transformers.__version__}; pip install 'transformers>={oldest},<{too_new}'"
        )


def register() -> None:
    """Makes `AutoModelForCausalLM.from_pretrained` read folders of ours.

    At once if transformers' table of quantizers is loaded, else when it is: importing it here
    would take longer than importing torch.
    """
    if _TABLES in sys.modules:
        _register_in(sys.modules[_TABLES])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_in(tables: ModuleType) -> None:
    if QUANT_METHOD in tables.AUTO_QUANTIZER_MAPPING:
        return
    try:
        check_transformers("from_pretrained")
        from prunekern.checkpoint.quantizer import PrunekernConfig, PrunekernQuantizer
    except ImportError as error:
        # Raised when a folder of ours is loaded: transformers alone would only warn and go on with
        # random weights. Raised here, it would take transformers away from those who have none.
        tables.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = _Refusal(str(error))
        return
    tables.register_quantization_config(QUANT_METHOD)(PrunekernConfig)
    tables.register_quantizer(QUANT_METHOD)(PrunekernQuantizer)


class _Refusal:
    """Stands for the config class in a release of transformers that ours can not build on."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def from_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError(self._reason)


class _Finder(MetaPathFinder):
    """Waits for one module and stands aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """The module's own loader, and then the registration."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register_in(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
