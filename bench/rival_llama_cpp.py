"""llama.cpp under the same conditions as `bench.py`; runs in an environment of its own.

    python rival_llama_cpp.py MODEL N_PROMPT N_DECODE N_THREADS

Needs llama-cpp-python, built for this machine:
CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
"""

from __future__ import annotations

import json
import random
import sys
import time

import llama_cpp


def main() -> None:
    path, n_prompt, n_decode, n_threads = sys.argv[1], *map(int, sys.argv[2:5])
    n = n_prompt + n_decode
    llm = llama_cpp.Llama(
        path,
        n_ctx=n + 32,
        n_batch=512,
        n_ubatch=512,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        logits_all=False,
        verbose=False,
    )
    ids = [random.Random(0).randrange(llm.n_vocab()) for _ in range(n)]
    llm.eval(ids[:32] if n_prompt else ids[:1])  # warm-up
    llm.reset()
    start = time.perf_counter()
    for chunk in [ids] if n_prompt else [[i] for i in ids]:
        llm.eval(chunk)
    print(json.dumps({"tokens_per_second": n / (time.perf_counter() - start)}))


if __name__ == "__main__":
    main()
