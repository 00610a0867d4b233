"""The operations of the load. Each compares to the bit with the first, single-threaded answer."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import random
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

import prunekern
from prunekern import SparseLinear
from prunekern.formats import FORMATS, compress
from prunekern.testing import random_weight, variants

_KERNELS = {cls.stem: kernel for kernel, cls in FORMATS.items()}
_TOKENS = (1, 5, 33)
_CHILD_SECONDS = 60


def _tiny_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Load:
    """Shared layers of every variant that runs here, and a model for each format."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.answers: dict[str, Tensor] = {}
        logging.disable_progress_bar()
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.layers: dict[str, SparseLinear] = {}
        for i, (stem, layout, dtype) in enumerate(variants()):
            if layout == "reference":
                continue  # plain torch, whose sums depend on its threads
            kernel = _KERNELS[stem]
            weight = random_weight(kernel, 416 + i, 320, dtype, seed=seed + i)
            layer = SparseLinear(compress(weight, kernel), torch.randn(416 + i).to(dtype), layout)
            self.layers[f"{stem}/{layout}/{dtype}"] = layer.requires_grad_(False)
        self.inputs = {
            (m, dtype): torch.randn(m, 320).to(dtype)
            for m in _TOKENS
            for dtype in {layer.dtype for layer in self.layers.values()}
        }
        for name in self.layers:
            for m in _TOKENS:
                self.linear(name, m)
        self.ids = torch.randint(128, (1, 9))
        self.models = {kernel: _tiny_model() for kernel in FORMATS}
        for kernel, model in self.models.items():
            prunekern.prune(model, pattern=FORMATS[kernel].pattern or "unstructured")
        self.operations: list[Callable[[], None]] = [
            *[self.threads] * 8, *[self.short_threads] * 4, *[self.swap] * 3,
            self.copies, self.state_dict, self.backward, self.save_and_load, self.set_threads,
            self.fork, self.fork_beside_threads, self.multiprocessing_fork, self.killed_save,
        ]  # fmt: skip

    def step(self) -> None:
        """One operation of the schedule."""
        operation = self.random.choice(self.operations)
        operation()
        self.counts[operation.__name__] += 1

    def digest(self) -> str:
        """Of what the shared layers answered: equal for equal seeds on one machine."""
        total = hashlib.sha256()
        for name in self.layers:
            for m in _TOKENS:
                answer = self.answers[f"{name} {m} tokens"]
                total.update(answer.contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    # ------------------------------------------------------------------ answers

    def same(self, key: str, got: Tensor) -> None:
        """Keeps the first answer to a question; raises AssertionError where a later one differs."""
        first = self.answers.setdefault(key, got.detach().clone())
        if not torch.equal(first, got):
            raise AssertionError(f"{key}: must be what it was at first, got another result")

    def linear(self, name: str, m: int) -> None:
        layer = self.layers[name]
        self.same(f"{name} {m} tokens", layer(self.inputs[m, layer.dtype]))

    def calls(self, count: int, seed: int, errors: list[BaseException]) -> None:
        draw = random.Random(seed)
        try:
            with torch.inference_mode():
                for _ in range(count):
                    self.linear(draw.choice(list(self.layers)), draw.choice(_TOKENS))
        except BaseException as error:
            errors.append(error)

    def run_threads(self, count: int, calls: int, beside: Callable[[], None] | None = None) -> None:
        errors: list[BaseException] = []
        threads = [
            threading.Thread(target=self.calls, args=(calls, self.random.random(), errors))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            if beside:
                beside()
        finally:
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    # ------------------------------------------------------------------ operations

    def threads(self) -> None:
        self.run_threads(8, 20)

    def short_threads(self) -> None:
        """Threads that come, call once and go: what a thread keeps must go with it."""
        self.run_threads(16, 1)

    def set_threads(self) -> None:
        torch.set_num_threads(self.random.choice((1, 2, 3)))

    def _model(self) -> tuple[str, torch.nn.Module]:
        kernel = self.random.choice(list(self.models))
        return kernel, self.models[kernel]

    def _logits(self, model: torch.nn.Module, key: str) -> None:
        with torch.inference_mode():
            self.same(key, model(self.ids).logits)

    def swap(self) -> None:
        kernel, model = self._model()
        model = copy.deepcopy(model)  # int8 and int4 round: the next swap must start from the same
        fuse = self.random.random() < 0.5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prunekern.replace_linears(model, kernel, fuse=fuse)
        self._logits(model, f"model {kernel} {fuse}")
        prunekern.restore_linears(model)
        self._logits(model, f"restored {kernel}")

    def copies(self) -> None:
        name = self.random.choice(list(self.layers))
        layer = self.layers[name]
        x = self.inputs[5, layer.dtype]
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            self.same(f"{name} 5 tokens", copied(x))
        narrow = copy.deepcopy(layer).to(torch.bfloat16)
        self.same(f"{name} to bfloat16", narrow(x.bfloat16()))

    def state_dict(self) -> None:
        name = self.random.choice(list(self.layers))
        layer = copy.deepcopy(self.layers[name])
        layer.load_state_dict(self.layers[name].state_dict())
        self.same(f"{name} 5 tokens", layer(self.inputs[5, layer.dtype]))

    def backward(self) -> None:
        name = self.random.choice([n for n in self.layers if "float32" in n])
        x = self.inputs[5, torch.float32].clone().requires_grad_()
        self.layers[name](x).sum().backward()
        torch.testing.assert_close(x.grad, self.layers[name].weight.sum(0).expand_as(x))

    def _sparse(self) -> tuple[str, torch.nn.Module]:
        kernel, model = self._model()
        model = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prunekern.replace_linears(model, kernel)
        return kernel, model

    def save_and_load(self) -> None:
        from transformers import AutoModelForCausalLM

        kernel, model = self._sparse()
        with tempfile.TemporaryDirectory() as folder:
            prunekern.save_pretrained(model, folder)
            self._logits(AutoModelForCausalLM.from_pretrained(folder), f"model {kernel} False")

    def killed_save(self) -> None:
        """A process that dies while it saves leaves the old folder, the new one or none."""
        from transformers import AutoModelForCausalLM

        kernel, model = self._sparse()
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            child = os.fork()
            if child == 0:
                prunekern.save_pretrained(model, folder)
                os._exit(0)
            time.sleep(self.random.random() * 0.3)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if folder.exists():
                self._logits(AutoModelForCausalLM.from_pretrained(folder), f"model {kernel} False")

    def fork(self) -> None:
        """A child of a process that has used the ops must be able to use them."""
        seed = self.random.random()
        child = os.fork()
        if child == 0:
            errors: list[BaseException] = []
            self.calls(20, seed, errors)
            torch.randn(200_000).exp()  # a parallel loop of torch's own
            os._exit(len(errors))
        self._wait(child)

    def fork_beside_threads(self) -> None:
        self.run_threads(4, 20, self.fork)

    def multiprocessing_fork(self) -> None:
        errors: list[BaseException] = []

        def target():
            self.calls(10, 1, errors)
            os._exit(len(errors))

        process = torch.multiprocessing.get_context("fork").Process(target=target)
        process.start()
        process.join(_CHILD_SECONDS)
        if process.exitcode != 0:
            process.kill()
            raise AssertionError(f"a forked process must end with 0, got {process.exitcode}")
        process.close()

    def _wait(self, child: int) -> None:
        end = time.monotonic() + _CHILD_SECONDS
        while time.monotonic() < end:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                if status:
                    raise AssertionError(f"a forked child must end with 0, got status {status}")
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError(f"a forked child must end within {_CHILD_SECONDS} s, got none")
