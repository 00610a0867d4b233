"""DeepSparse: sparse kernels made for one weight, in a process of its own.

Its last release wants numpy below 2 and Python up to 3.11, so that it lives in an environment of
its own, `.venv-deepsparse` (made by `make bench`) or whatever PRUNEKERN_DEEPSPARSE_PYTHON names,
and is asked through a pipe. It looks at the clock itself: the pipe's time is not counted.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rivals.onnxruntime import matmul_model
from rivals.rival import Product, Rival, no_package

_HERE = Path(__file__).resolve().parent
_VARIABLE = "PRUNEKERN_DEEPSPARSE_PYTHON"


def _python() -> Path:
    default = _HERE.parent.parent / ".venv-deepsparse" / "bin" / "python"
    return Path(os.environ.get(_VARIABLE, default))


def _absent() -> str:
    if not _python().exists():
        return (
            f"not installed: {_python()} is not there; make bench installs it, or set {_VARIABLE}"
        )
    return no_package("onnx")()


class _Runner:
    """The other process: one line of JSON to it, one back."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="deepsparse-")
        self.process = subprocess.Popen(
            [
                str(_python()),
                "-I",
                str(_HERE / "deepsparse_runner.py"),
                str(torch.get_num_threads()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.environ.get("PATH", ""), "NM_DISABLE_ANALYTICS": "True"},
        )
        self.loaded = 0
        self.forgotten: list[int] = []
        self.tokens = None
        atexit.register(self.close)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, **question) -> dict:
        question["forget"], self.forgotten = self.forgotten, []
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def path(self, name: str) -> Path:
        return Path(self.folder.name) / name

    def run(self, model: int, x: Tensor) -> float:
        if self.tokens is not x:
            np.save(self.path("x.npy"), x.numpy())
            self.ask(do="tokens", path=str(self.path("x.npy")))
            self.tokens = x
        return self.ask(do="run", model=model)["seconds"]


_runner = functools.cache(_Runner)


class _Model:
    """One compiled weight there; forgotten there when it is forgotten here."""

    def __init__(self, weight: Tensor, tokens: int):
        self.runner = _runner()
        path = self.runner.path(f"{self.runner.loaded}.onnx")
        path.write_bytes(matmul_model(weight, torch.float32, tokens))
        self.number = self.runner.loaded
        self.runner.loaded += 1
        try:
            self.runner.ask(do="load", path=str(path), tokens=tokens)
        finally:
            path.unlink()

    def __del__(self):
        # Not asked here: this may run in the middle of another question.
        if hasattr(self, "number"):
            self.runner.forgotten.append(self.number)

    def seconds(self, x: Tensor) -> float:
        return self.runner.run(self.number, x)

    def call(self, x: Tensor) -> Tensor:
        self.runner.run(self.number, x)
        path = self.runner.path("y.npy")
        self.runner.ask(do="save", path=str(path))
        return torch.from_numpy(np.load(path))


def _build(weight: Tensor, tokens: int) -> Product:
    model = _Model(weight, tokens)
    # How it stores zeros is its own secret: at least the kept weights.
    return Product(model.call, 4 * int(weight.count_nonzero()), model.seconds)


RIVALS = (
    Rival(
        "DeepSparse float32", torch.float32, _build, _absent, storage="csr", pool="deepsparse",
        fixed_tokens=True,
    ),
)  # fmt: skip
