"""Speed of one model file: prompts, decoding, opening, start-up; as shares of what memory allows.

    python bench/bench.py MODEL [-p 512] [-n 64] [-t 2] [-r 5] [--rival PYTHON]

Decoding reads every weight once a token, so its limit is the machine's read bandwidth, measured
here before and after. A prompt is multiplied, so it is stated in tokens a second and in
multiply-adds a second. As in llama-bench: random token ids, an empty cache, no sampling, one
warm-up, the median of the runs.

With --rival, the Python of an environment that has llama-cpp-python: it runs the same file in
turns with us (A B A B), and the ratio of each pair is printed. The last line is one JSON object.
Machines drift and neighbors are noisy: trust the ratios and shares, not a single time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from starcoder import formats, models, ops
from starcoder.batch import BLOCK_LEN, Batch
from starcoder.kv_cache import KVCache

RIVAL = Path(__file__).parent / "rival_llama_cpp.py"


def read_bandwidth(n_threads: int) -> float:
    """Bytes a second that `n_threads` threads read from 1 GB of memory, at best."""
    words = np.ones(1 << 27, np.uint64)

    def run() -> float:
        parts = np.array_split(words, n_threads)
        threads = [threading.Thread(target=np.bitwise_or.reduce, args=(p,)) for p in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return words.nbytes / (time.perf_counter() - start)

    return max(run() for _ in range(5))


class Runner:
    """One model, run on random tokens."""

    def __init__(self, path: str, n_threads: int) -> None:
        ops.set_n_threads(n_threads)
        start = time.perf_counter()
        checkpoint = formats.read(path)
        opened = time.perf_counter()
        self.model = models.build(checkpoint)
        self.open_s, self.build_s = opened - start, time.perf_counter() - opened
        self.file_bytes = checkpoint.nbytes
        self.config = checkpoint.config

    def tokens_per_second(self, n_prompt: int, n_decode: int) -> float:
        """Of a prompt of `n_prompt` tokens, or of `n_decode` tokens one by one."""
        n = n_prompt + n_decode
        table = list(range(-(-n // BLOCK_LEN)))
        cache = KVCache(self.config, len(table))
        ids = np.random.default_rng(0).integers(0, self.config.n_vocab, n).tolist()
        chunks = [ids[:n_prompt]] if n_prompt else [[i] for i in ids]
        start, at = time.perf_counter(), 0
        for chunk in chunks:
            self.model.forward(Batch.of([(chunk, at, table)], [len(chunk) - 1]), cache)
            at += len(chunk)
        return n / (time.perf_counter() - start)

    @property
    def multiply_adds(self) -> float:
        """Of the layers' matrices, a token; the output matrix is used once a prompt."""
        c = self.config
        qkv = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
        return float(c.n_layers * c.dim * (qkv + c.dim + 2 * c.hidden_dim))


def rival_run(python: str, args: argparse.Namespace, n_prompt: int, n_decode: int) -> float:
    command = [python, str(RIVAL), args.model, *map(str, (n_prompt, n_decode, args.threads))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout.splitlines()[-1])["tokens_per_second"])


def start_up(path: str, n_threads: int) -> tuple[float, int]:
    """Seconds from the shell to the end of one token, and the peak of resident bytes."""
    command = [sys.executable, "-m", "starcoder", "-m", path, "-p", "x", "-n", "1", "--temp", "0"]
    start = time.perf_counter()
    null = subprocess.DEVNULL
    child = subprocess.Popen([*command, "-t", str(n_threads)], stdout=null, stderr=null)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"bench: {' '.join(command)} ended with status {status}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit


def medians(ours: Callable[[], float], rival: Callable[[], float] | None, n: int) -> list[float]:
    """Median of our runs; with a rival also its median and the median of the pairs' ratios."""
    pairs = [(ours(), rival() if rival else 0.0) for _ in range(n)]
    if rival is None:
        return [statistics.median(a for a, _ in pairs)]
    columns = [a for a, _ in pairs], [b for _, b in pairs], [a / b for a, b in pairs]
    return [statistics.median(column) for column in columns]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a model file or directory")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("-n", "--decode", type=int, default=64, help="tokens decoded")
    parser.add_argument("-t", "--threads", type=int, default=ops.n_cpus())
    parser.add_argument("-r", "--runs", type=int, default=5)
    parser.add_argument("--rival", metavar="PYTHON", help="a Python that has llama-cpp-python")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start_up(args.model, args.threads)  # warms the page cache
    starts = [start_up(args.model, args.threads) for _ in range(args.runs)]
    before = read_bandwidth(args.threads)
    runner = Runner(args.model, args.threads)
    runner.tokens_per_second(32, 0)

    rows = {}
    for name, n_prompt, n_decode in (("prompt", args.prompt, 0), ("decode", 0, args.decode)):

        def ours(n_prompt: int = n_prompt, n_decode: int = n_decode) -> float:
            return runner.tokens_per_second(n_prompt, n_decode)

        def rival(n_prompt: int = n_prompt, n_decode: int = n_decode) -> float:
            return rival_run(args.rival, args, n_prompt, n_decode)

        rows[name] = medians(ours, rival if args.rival else None, args.runs)
    bandwidth = max(before, read_bandwidth(args.threads))

    decode_bytes = rows["decode"][0] * runner.model.nbytes
    result = {
        "isa": ops.isa(),
        "threads": args.threads,
        "prompt_tps": rows["prompt"][0],
        "prompt_gmacs": rows["prompt"][0] * runner.multiply_adds / 1e9,
        "decode_tps": rows["decode"][0],
        "decode_gbps": decode_bytes / 1e9,
        "read_gbps": bandwidth / 1e9,
        "decode_limit_share": decode_bytes / bandwidth,
        "open_ms": runner.open_s * 1e3,
        "build_ms": runner.build_s * 1e3,
        "start_up_ms": statistics.median(s for s, _ in starts) * 1e3,
        "start_up_peak_mb": max(peak for _, peak in starts) / 1e6,
        "weights_mb": runner.model.nbytes / 1e6,
    }
    if args.rival:
        for name, (_, theirs, ratio) in rows.items():
            result |= {f"llama_cpp_{name}_tps": theirs, f"{name}_ratio": ratio}
    for key, value in result.items():
        print(f"{key:22} {value:10.2f}" if isinstance(value, float) else f"{key:22} {value:>10}")
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
