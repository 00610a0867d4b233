"""The process in which DeepSparse runs: see deepsparse.py. Needs deepsparse and numpy alone.

python -I deepsparse_runner.py THREADS, then lines of JSON:
{"do": "load", "path": an ONNX file, "tokens": 8}
{"do": "tokens", "path": x.npy}         {"do": "run", "model": 0} -> {"seconds": ...}
{"do": "save", "path": y.npy}
each with "forget": numbers of models that are needed no more
"""

import json
import os
import sys
import time

import numpy as np

# Whatever the library prints must not come between the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def main() -> None:
    """Answers until the pipe is closed."""
    from deepsparse import Engine

    engines, x, y = [], None, None

    def answer(question: dict) -> dict:
        nonlocal x, y
        do = question["do"]
        for number in question["forget"]:
            engines[number] = None
        if do == "load":
            engines.append(Engine(question["path"], question["tokens"], int(sys.argv[1])))
        elif do == "tokens":
            x = [np.load(question["path"])]
        elif do == "run":
            start = time.perf_counter()
            y = engines[question["model"]].run(x, val_inp=False)
            return {"seconds": time.perf_counter() - start}
        elif do == "save":
            np.save(question["path"], y[0])
        return {}

    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


main()
