"""Threads: whatever happens to them, to memory or to the process, calls end and the next one works.

Each case runs in a process of its own, since some of them once ended it. Their timeouts are
generous: nothing here is about speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from starcoder import _core
from starcoder.core import ops
from starcoder.core.tensor import TensorType
from tests.helpers import operations
from tests.helpers.weights import random_tensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals of Linux")

PRELUDE = f"""
import os, resource, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import numpy as np
import starcoder
from starcoder import _core
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from tests.helpers import operations

def matrix(n_rows, n_cols):
    w = np.random.default_rng(1).standard_normal((n_rows, n_cols)).astype(np.float32)
    return ops.pack(ops.quantize(w, TensorType.Q4_0))

def room(n_bytes):  # of address space, beyond what there is
    pages = int(open("/proc/self/statm").read().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + n_bytes, hard))

def all_room():
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
"""


def run(code: str, *, isa: str = "", first: str = "") -> str:
    """What a program prints that must end by itself, quietly and well."""
    code = textwrap.dedent(first) + PRELUDE + textwrap.dedent(code)
    environ = os.environ | ({"STARCODER_ISA": isa} if isa else {})
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        env=environ,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_after_a_step_without_memory_the_next_one_works(n_threads: int) -> None:
    run(f"""
    ops.set_n_threads({n_threads})
    w, few = matrix(64, 1 << 20), np.ones((1, 1 << 20), np.float32)
    many = np.ones((3, 1 << 20), np.float32)
    expected, failures = operations.linear(few, w), 0
    out = np.empty((3, 64), np.float32)
    for n_bytes in range(0, 12 << 20, 1 << 20):  # the caller has memory, or only the workers have
        room(n_bytes)
        try:
            _core.testing.linear(w, many, None, 0, None, out)
        except MemoryError:
            failures += 1
        all_room()
        assert np.array_equal(operations.linear(few, w), expected)
    assert failures
    assert np.array_equal(operations.linear(many, w)[1:2], expected)
    """)


def test_threads_that_cannot_start_are_done_without() -> None:
    printed = run("""
    w, x = matrix(256, 512), np.ones((5, 512), np.float32)
    expected = operations.linear(x, w)
    room(20 << 20)  # two stacks of 8 MB
    n = ops.set_n_threads(64)
    assert np.array_equal(operations.linear(x, w), expected)
    assert np.array_equal(operations.linear(x[:1], w), expected[:1])
    print(n)
    """)
    assert 1 <= int(printed) < 64


def test_a_model_says_how_many_threads_could_start() -> None:
    printed = run("""
    llm = starcoder.LLM(n_threads=1)
    expected = llm.generate("def f", max_tokens=4).text
    starcoder.core.machine.threads = lambda n: starcoder.core.machine.Threads(64)
    room(300 << 20)  # less than 63 stacks of 8 MB
    llm = starcoder.LLM(n_parallel=1)
    assert llm.generate("def f", max_tokens=4).text == expected
    print(llm.facts.n_threads, llm.facts.threads_note)
    """)
    n, _, note = printed.partition(" ")
    assert 1 <= int(n) < 64
    assert note == "of 64: the system starts no more\n"


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_process_ends_while_a_daemon_thread_generates(n_threads: int) -> None:
    for _ in range(4):
        run(f"""
        llm = starcoder.LLM(n_threads={n_threads})
        def forever():
            while True:
                llm.generate("def f", max_tokens=200, ignore_eos=True)
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.1)
        """)


def test_functions_that_run_at_exit_may_still_generate() -> None:
    printed = run("""
    import atexit
    llm = starcoder.LLM(n_threads=2)
    atexit.register(lambda: print(len(llm.generate("def f", max_tokens=3).tokens)))
    threading.Thread(
        target=lambda: [starcoder.LLM().generate("x", max_tokens=99) for _ in iter(int, 1)],
        daemon=True,
    ).start()
    time.sleep(0.1)
    """)
    assert printed == "3\n"


@pytest.mark.parametrize("n_threads", [1, 2])
def test_functions_at_exit_may_use_the_model_of_a_thread_that_ended(n_threads: int) -> None:
    first = """
    import atexit
    atexit.register(lambda: print(len(llm.generate("def f", max_tokens=3).tokens)))
    """
    printed = run(
        f"""
        llm = starcoder.LLM(n_threads={n_threads})
        def forever():
            while True:
                llm.generate("def f", max_tokens=200, ignore_eos=True)
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.1)
        """,
        first=first,
    )
    assert printed == "3\n"


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_child_forked_beside_a_generating_thread_works(n_threads: int) -> None:
    run(f"""
    llm = starcoder.LLM(n_threads={n_threads})
    expected = llm.generate("import ", max_tokens=5).text
    stream = llm.stream("x", max_tokens=9)
    def forever():
        while True:
            llm.generate("def f" * 50, max_tokens=200, ignore_eos=True)
    threading.Thread(target=forever, daemon=True).start()
    for i in range(10):
        time.sleep(0.003 * i)
        child = os.fork()
        if child == 0:
            good = llm.generate("import ", max_tokens=5).text == expected
            good = good and [p.finish_reason for p in stream][-1] in ("cancelled", "length")
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert llm.generate("import ", max_tokens=5).text == expected
    """)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_interrupt_is_heard_inside_a_call(n_threads: int) -> None:
    """The call would take a minute; nothing else ends it."""
    run(
        f"""
        ops.set_n_threads({n_threads})
        w, x = matrix(2048, 2048), np.ones((30_000, 2048), np.float32)
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            operations.linear(x, w)
        except KeyboardInterrupt:
            assert np.array_equal(operations.linear(x[:1], w), operations.linear(x[1:2], w))
        else:
            raise AssertionError("not heard")
        """,
        isa="scalar",
    )


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_model_works_after_interrupts_in_the_middle_of_a_step(n_threads: int) -> None:
    run(
        f"""
        class Stop(Exception): pass
        def stop(*_): raise Stop
        signal.signal(signal.SIGALRM, stop)
        llm, ids = starcoder.LLM(n_threads={n_threads}), list(range(5, 455))
        expected, n_stopped = llm.logits(ids).tobytes(), 0
        for i in range(12):
            signal.setitimer(signal.ITIMER_REAL, 0.02 + 0.02 * i)
            try:
                llm.logits(ids)
            except Stop:
                n_stopped += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert n_stopped
        assert llm.logits(ids).tobytes() == expected
        """,
        isa="scalar",
    )


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_process_ends_in_the_middle_of_a_long_step(n_threads: int) -> None:
    for delay in (0.1, 0.3):
        run(
            f"""
            llm = starcoder.LLM(n_threads={n_threads})
            def forever():
                while True:
                    llm.logits(list(range(5, 455)))
            threading.Thread(target=forever, daemon=True).start()
            time.sleep({delay})
            """,
            isa="scalar",
        )


def test_a_handler_may_compute_while_a_call_waits_for_it() -> None:
    run(
        """
        ops.set_n_threads(2)
        w, x, found = matrix(256, 512), np.ones((20_000, 512), np.float32), []
        expected = operations.linear(x[:2], w).tobytes()
        answer = lambda: operations.linear(x[:2], w).tobytes()
        signal.signal(signal.SIGALRM, lambda *_: found.append(answer()))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        operations.linear(x, w)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert set(found) == {expected}
        """,
        isa="scalar",
    )


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_handler_that_forks_leaves_a_child_that_works(n_threads: int) -> None:
    """With one thread the child goes on with the call; others are not there, and it ends."""
    run(
        f"""
        ops.set_n_threads({n_threads})
        w, x, children = matrix(256, 512), np.ones((20_000, 512), np.float32), []
        expected = operations.linear(x[:2], w).tobytes()
        signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            operations.linear(x, w)
        except RuntimeError:
            assert children == [0]
        good = operations.linear(x[:2], w).tobytes() == expected
        if children == [0]:
            os._exit(0 if good else 1)
        assert good
        assert os.waitpid(children[0], 0)[1] == 0
        """,
        isa="scalar",
    )


def test_a_signal_whose_handler_returns_ends_nothing() -> None:
    run(
        """
        ops.set_n_threads(2)
        heard = []
        signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
        w, x = matrix(256, 512), np.ones((20_000, 512), np.float32)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        y = operations.linear(x, w)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert heard
        assert (y == y[0]).all()
        """,
        isa="scalar",
    )


def test_a_library_that_flushes_small_numbers_to_zero_changes_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler")
    (tmp_path / "fast.cpp").write_text("int nothing;\n")
    command = [compiler, "-shared", "-fPIC", "-ffast-math", "-o", "fast.so", "fast.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True)
    run(f"""
    import ctypes
    tiny = np.full((64, 64), 1e-39, np.float32)  # below 2^-126
    w, x = Tensor(TensorType.F32, tiny.shape, tiny.reshape(-1).view(np.uint8)), np.ones((5, 64))
    x = x.astype(np.float32)
    def product(n_threads):
        ops.set_n_threads(n_threads)
        return operations.linear(x, ops.pack(w)).tobytes()
    ops.set_n_threads(1)
    expected = product(1)
    assert np.frombuffer(expected, np.float32).all()
    ctypes.CDLL({str(tmp_path / "fast.so")!r})
    flushes = bool(np.float32(1e-39) * np.float32(1) == 0)
    assert [product(n) for n in (1, 2, 3)] == [expected] * 3
    assert bool(np.float32(1e-39) * np.float32(1) == 0) == flushes  # and theirs is as it was
    """)


def test_calls_from_many_threads_with_changing_numbers_of_threads_agree() -> None:
    w = ops.pack(random_tensor(TensorType.Q4_0, 320, 256))
    x = np.random.default_rng(3).standard_normal((70, 256)).astype(np.float32)
    before = ops.n_threads()
    expected = [operations.linear(x[:n], w).tobytes() for n in (1, 9, 70)]
    code = """
    w, x = matrix(320, 256), np.random.default_rng(3).standard_normal((70, 256)).astype(np.float32)
    expected = [operations.linear(x[:n], w).tobytes() for n in (1, 9, 70)]
    wrong = []
    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            if rng.random() < 0.05:
                _core.set_n_threads(int(rng.integers(1, 9)))
            i = int(rng.integers(3))
            if operations.linear(x[: (1, 9, 70)[i]], w).tobytes() != expected[i]:
                wrong.append(i)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong
    """
    run(code)
    try:
        for n in (1, 2, 5, 8):
            ops.set_n_threads(n)
            assert [operations.linear(x[:n], w).tobytes() for n in (1, 9, 70)] == expected
    finally:
        ops.set_n_threads(before)


def test_measurements_wait_for_every_thread_on_a_busy_machine() -> None:
    """Threads that wait long for a processor are sent to sleep; these calls need them all."""
    before = ops.n_threads()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        ops.set_n_threads(4)
        memory = _core.Memory(1 << 20, 0x0123456789ABCDEF)
        w = ops.pack(random_tensor(TensorType.Q8_0, 2048, 2048))
        x = np.ones((1, 2048), np.float32)
        answers = set()
        for _ in range(40):
            answers |= {operations.linear(x, w).tobytes() for _ in range(20)}
            assert memory.read(1)[1] == 0x0123456789ABCDEF
            assert _core.peak(0, 0.0)[1] == 15
        assert len(answers) == 1
    finally:
        ops.set_n_threads(before)
        for process in busy:
            process.kill()
            process.wait()
