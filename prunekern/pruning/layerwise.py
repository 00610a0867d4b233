"""Running a Llama-like model one decoder layer at a time, for all calibration windows.

The memory of it is the inputs of one layer, [windows, tokens, hidden], which the layer's outputs
overwrite; on request in a file.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekern.pruning.input_statistics import AllHeard

Tick = Callable[[], None]


def decoder_layers(model: nn.Module, method: str) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers.

    Raises:
        ValueError: There is none where Llama-like models of transformers have it.
    """
    for name in ("model.layers", "layers"):
        try:
            layers = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList) and len(layers):
            return name, layers
    raise ValueError(
        f"prune: method {method} must have a model with decoder layers at model.layers, as "
        f"LlamaForCausalLM of transformers, got {type(model).__name__}; magnitude and random take "
        "any model, taylor any causal language model"
    )


class HeadLayer(nn.Module):
    """What follows the decoder layers, run as if it were one more: the last norm and the head."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> logits [..., vocabulary]."""
        return self.head(self.norm(hidden))


def with_head(model: nn.Module, prefix: str, layers: nn.ModuleList) -> nn.ModuleList:
    """The decoder layers, and after them the head where the model has one like Llama's."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    norm = getattr(model.get_submodule(prefix.rpartition(".")[0]), "norm", None)
    if head is None or norm is None:
        return layers
    return nn.ModuleList([*layers, HeadLayer(norm, head)])


def layer_of_target(
    prefix: str, names: list[str], method: str, head: str | None = None
) -> dict[str, int | None]:
    """Target -> index of its decoder layer, or None for that of the name `head`.

    Raises:
        ValueError: A target is neither.
    """
    indices: dict[str, int | None] = {}
    for name in names:
        if name == head:
            indices[name] = None
            continue
        before, _, rest = name.partition(f"{prefix}.")
        if before or not rest:
            raise ValueError(
                f"prune: targets of {method} must be in decoder layers ({prefix}.*) or the head, "
                f"got {name}; prune it with magnitude or taylor"
            )
        indices[name] = int(rest.split(".")[0])
    return indices


class Progress:
    """Tells a callback how much is done, in [0, 1], and the seconds that the rest may take."""

    def __init__(self, callback: Callable[[float, float], None] | None) -> None:
        self._callback = callback
        self._start = time.monotonic()

    def span(self, begin: float, end: float, units: int) -> Tick:
        """A function to be called `units` times while the share done goes from begin to end."""
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            share = begin + (end - begin) * done / units
            if self._callback is not None:
                self._callback(share, (time.monotonic() - self._start) * (1 / share - 1))

        return tick


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout, no gradients; afterwards each module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def scratch(folder: str | Path | None) -> Iterator[Callable[[tuple[int, ...], Tensor], Tensor]]:
    """`make(shape, like)`: an empty tensor; mapped from a file in `folder` if one is given.

    The files are in a folder of their own, gone at the end.
    """
    if folder is None:
        yield lambda shape, like: torch.empty(shape, dtype=like.dtype, device=like.device)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="prunekern-", dir=folder) as inner:
        made = 0

        def make(shape: tuple[int, ...], like: Tensor) -> Tensor:
            nonlocal made
            made += 1
            size = torch.Size(shape).numel()
            path = f"{inner}/{made}"
            return torch.from_file(path, shared=True, size=size, dtype=like.dtype).view(shape)

        yield make


class _Stop(Exception):
    """Ends a forward pass where the first decoder layer would begin."""


class Activations:
    """The inputs of one decoder layer for all windows."""

    def __init__(
        self,
        model: nn.Module,
        layers: nn.ModuleList,
        windows: Tensor,
        make: Callable[[tuple[int, ...], Tensor], Tensor],
    ) -> None:
        """Runs what comes before the first layer; records what else each layer is called with."""
        self._layers = layers
        self._device = next(model.parameters()).device
        self._calls = _record_calls(model, layers, windows[:1].to(self._device))
        self._hidden: Tensor | None = None
        for i, window in enumerate(windows):
            first = _first_input(model, layers[0], window[None].to(self._device))
            if self._hidden is None:
                self._hidden = make((len(windows), *first.shape[1:]), first)
            self._hidden[i] = first[0]

    def run(
        self,
        index: int,
        keep: bool,
        tick: Tick,
        after_window: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs layer `index` on every window.

        Args:
            index: Of the layer whose inputs these are.
            keep: Whether the outputs become the inputs of the next layer, or are dropped.
            tick: Called after each window.
            after_window: Called after each window. If outputs are dropped, its hooks may end a
                window early by `AllHeard`.
        """
        layer = self._layers[index]
        args, kwargs = self._calls[index]
        device = next(layer.parameters()).device
        for i in range(len(self._hidden)):
            out = None
            with contextlib.suppress(*([] if keep else [AllHeard])):
                out = layer(self._hidden[i : i + 1].to(device), *args, **kwargs)
            if keep:
                self._hidden[i] = (out[0] if isinstance(out, tuple) else out)[0]
            after_window()
            tick()


def _record_calls(
    model: nn.Module, layers: nn.ModuleList, ids: Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each layer is called with besides its input: masks may differ between them."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        kwargs = dict(kwargs)
        if not args:
            kwargs.pop("hidden_states")
        calls.append((args[1:], kwargs))

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(layers[-1], HeadLayer):
        calls.append(((), {}))
    return calls


def _first_input(model: nn.Module, layer: nn.Module, ids: Tensor) -> Tensor:
    caught: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(ids, use_cache=False)
    except _Stop:
        pass
    finally:
        hook.remove()
    return caught[0]
