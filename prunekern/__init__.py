"""prunekern: prune Llama-style models and run what is left on kernels for sparse storage.

    prunekern.prune(model, pattern="2:4")
    prunekern.replace_linears(model, kernel="2:4")
    prunekern.compare(model, tokenizer)

See README.md for the whole of it, CONTRIBUTING.md for the map of the house.
"""

import importlib
from typing import TYPE_CHECKING, Any

from prunekern import fork
from prunekern.checkpoint import convert, save_pretrained
from prunekern.checkpoint.versions import register
from prunekern.decode import Decoder, Generated, generate
from prunekern.formats import compress, decompress, nbytes, validate
from prunekern.fuse import fuse_linears
from prunekern.hardware import hardware
from prunekern.layouts import Packed, pack, unpack
from prunekern.nn import SparseLinear
from prunekern.ops import linear
from prunekern.pruning import permute_channels, prune
from prunekern.recovery import recover
from prunekern.replace import replace_linears, restore_linears
from prunekern.structured import remove_channels, remove_heads, remove_hidden, remove_layers
from prunekern.training import TrainableSparseLinear

if TYPE_CHECKING:
    from prunekern.advice import Plan, advise, apply
    from prunekern.compare import compare

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "Generated",
    "Packed",
    "Plan",
    "SparseLinear",
    "TrainableSparseLinear",
    "advise",
    "apply",
    "compare",
    "compress",
    "convert",
    "decompress",
    "fuse_linears",
    "generate",
    "hardware",
    "linear",
    "nbytes",
    "pack",
    "permute_channels",
    "prune",
    "recover",
    "remove_channels",
    "remove_heads",
    "remove_hidden",
    "remove_layers",
    "replace_linears",
    "restore_linears",
    "save_pretrained",
    "unpack",
    "validate",
]

register()
fork.register()


_ADVICE = ("Plan", "advise", "apply")


def __getattr__(name: str) -> Any:
    # Comparing needs transformers, which takes seconds to import; pruning and running do not.
    if name == "compare":
        return importlib.import_module("prunekern.compare")
    if name in _ADVICE:
        return getattr(importlib.import_module("prunekern.advice"), name)
    raise AttributeError(f"module 'prunekern' has no attribute {name!r}")
