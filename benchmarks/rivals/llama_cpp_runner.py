"""The process in which llama.cpp runs: see llama_cpp.py. Needs llama-cpp-python alone.

python -I llama_cpp_runner.py MODEL.gguf THREADS, then lines of JSON:
{"tokens": [...], "prompt": 32, "new": 16}
    -> {"prefill": tokens a second, "decode": tokens a second, "rss": bytes}
"""

import ctypes
import json
import os
import statistics
import sys
import time

import numpy as np

# Whatever the library prints must not come between the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(answer: dict) -> None:
    """One line."""
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main() -> None:
    """Answers until the pipe is closed."""
    import llama_cpp

    path, threads = sys.argv[1], int(sys.argv[2])
    model = llama_cpp.Llama(
        path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip
    system = llama_cpp.llama_print_system_info().decode()
    on = [part.split("=")[0].strip() for part in system.split("|") if part.strip().endswith("= 1")]
    say({"version": llama_cpp.__version__, "features": on, "file_bytes": os.path.getsize(path)})

    def run(question: dict) -> dict:
        tokens, prompt = question["tokens"], question["prompt"]
        model.reset()
        start = time.perf_counter()
        model.eval(tokens)
        prefill = len(tokens) / (time.perf_counter() - start)
        model.reset()
        model.eval(tokens[:prompt])
        times = []
        for _ in range(question["new"]):
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            address = ctypes.addressof(logits.contents)
            row = np.ctypeslib.as_array((ctypes.c_float * model.n_vocab()).from_address(address))
            token = int(row.argmax())
            start = time.perf_counter()
            model.eval([token])
            times.append(time.perf_counter() - start)
        with open("/proc/self/status") as status:
            rss = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        return {"prefill": prefill, "decode": 1 / statistics.median(times), "rss": rss * 1024}

    for line in sys.stdin:
        say(run(json.loads(line)))


main()
