"""What goes from one process to another: errors whole, models never, prompts and answers always."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import starcoder
from starcoder import (
    LLM,
    FormatError,
    InputError,
    LogitsError,
    MemoryLimitError,
    StarcoderError,
    WriteError,
)

ERRORS = [StarcoderError, FormatError, InputError, LogitsError, MemoryLimitError, WriteError]
PAGE = (Path(__file__).parent.parent / "docs" / "multiprocessing.md").read_text()


class _LaterError(InputError):
    """As somebody may derive one."""


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(n_threads=1)


@pytest.mark.parametrize("kind", [*ERRORS, _LaterError])
@pytest.mark.parametrize("advice", ["", "do this"])
def test_an_error_is_itself_after_any_journey(kind: type[StarcoderError], advice: str) -> None:
    error = kind("a", "b", "c", advice)
    twins = [pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in (*twins, copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert (twin.where, twin.found, twin.expected, twin.advice) == ("a", "b", "c", advice)
        assert str(twin) == str(error) == "a: found b, expected c" + (advice and f"; {advice}")
        assert eval(repr(twin), {kind.__name__: kind}).args == error.args


def test_every_error_of_the_package_is_among_these() -> None:
    names = {name for name in starcoder.__all__ if name.endswith("Error")}
    assert names == {kind.__name__ for kind in ERRORS}


def fail(model: str) -> Any:
    return LLM(model)


def test_an_error_of_a_worker_comes_back() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        failed = pool.map_async(fail, ["/no/such/model"])
        with pytest.raises(FormatError, match="/no/such/model: no such file"):
            failed.get(timeout=60)
        assert pool.map_async(len, ["xy"]).get(timeout=60) == [2]


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda f: f.__name__)
def test_a_model_says_what_to_do_instead(llm: LLM, send: Any) -> None:
    for thing in (llm, [llm]) if send is not copy.copy else (llm,):
        with pytest.raises(InputError, match=r"one LLM in each process; .*multiprocessing\.md"):
            send(thing)


def test_a_pool_that_is_handed_a_model_says_so_and_goes_on(llm: LLM) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(InputError, match="one LLM in each process"):
            pool.map_async(llm.generate, ["x"]).get(timeout=60)
        assert pool.map_async(len, ["xy"]).get(timeout=60) == [2]


def test_answers_and_their_parts_can_be_sent(llm: LLM) -> None:
    answer = llm.generate("def f", max_tokens=3)
    for thing in (answer, answer.timings, llm.facts, next(llm.stream("x"))):
        assert pickle.loads(pickle.dumps(thing)) == copy.deepcopy(thing) == thing


# ------------------------------------------------------------------------------------------------
# docs/multiprocessing.md

PROGRAMS = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_a_program_for_each_way() -> None:
    assert [name for name, _ in PROGRAMS] == ["one.py", "spawned.py", "forked.py"]


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_programs_of_the_page_run_and_give_what_one_process_gives(
    llm: LLM, tmp_path: Path, name: str, program: str
) -> None:
    if name == "forked.py" and "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    (tmp_path / name).write_text(program)
    command = [sys.executable, name]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert (result.returncode, result.stderr) == (0, "")
    prompts = [f"def area_{i}(" for i in range(8)]
    expected = [answer.text for answer in llm.generate(prompts, max_tokens=16)]
    assert result.stdout == "".join(f"{p}{t}\n" for p, t in zip(prompts, expected, strict=True))
