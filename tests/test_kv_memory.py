"""How much memory keys and values may take: as chosen, or what the machine leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from starcoder import LLM, formats
from starcoder.convert import kv_memory, memory
from starcoder.core import machine
from starcoder.core.machine import Room
from starcoder.errors import InputError, MemoryLimitError
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.kv_cache import cache_bytes

N_CTX = 512


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Checkpoint:
    return formats.read(data / "gpt_bigcode-q4_0.gguf")


def pretend(monkeypatch: pytest.MonkeyPatch, nbytes: int | None) -> None:
    """Make this a machine with so many bytes of memory."""
    room = None if nbytes is None else Room(nbytes, "free memory of this machine")
    monkeypatch.setattr(machine, "memory_room", lambda: room)
    monkeypatch.setattr(machine, "address_room", lambda: None)


def need(checkpoint: Checkpoint) -> int:
    """Bytes that the model takes with one context and that are not in memory yet."""
    found = memory.need_of(checkpoint, memory.Use(N_CTX, N_CTX))
    return found.total - found.vectors


def chosen(checkpoint: Checkpoint, nbytes: int | None = None, n_parallel: int = 8) -> int:
    return kv_memory.n_positions(checkpoint, N_CTX, 512, n_parallel, nbytes)


def test_by_default_there_is_room_for_the_requests_that_run_at_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (None, 1 << 34):
        pretend(monkeypatch, room)
        assert chosen(checkpoint) == 8 * N_CTX


def test_by_default_it_is_less_where_the_machine_has_less(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = cache_bytes(checkpoint.config, 4 * N_CTX)
    pretend(monkeypatch, need(checkpoint) + more)
    assert chosen(checkpoint) == 4 * N_CTX, "one, and three quarters of four"
    pretend(monkeypatch, need(checkpoint))
    assert chosen(checkpoint) == N_CTX


def test_what_is_chosen_is_taken_in_whole_runs(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 1 << 34)
    nbytes = cache_bytes(checkpoint.config, 3 * N_CTX)
    assert chosen(checkpoint, nbytes) == 3 * N_CTX
    assert chosen(checkpoint, nbytes + 100) == 3 * N_CTX


def test_less_than_one_context_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 1 << 34)
    with pytest.raises(InputError, match=r"kv_memory: found .*expected at least .* for 512 tokens"):
        chosen(checkpoint, cache_bytes(checkpoint.config, N_CTX) - 1)


def test_more_than_the_machine_has_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = cache_bytes(checkpoint.config, 4 * N_CTX)
    pretend(monkeypatch, need(checkpoint) + more)
    assert chosen(checkpoint, cache_bytes(checkpoint.config, 5 * N_CTX)) == 5 * N_CTX
    with pytest.raises(MemoryLimitError, match=r"at most .* free memory of this machine beside"):
        chosen(checkpoint, cache_bytes(checkpoint.config, 6 * N_CTX))


def test_a_model_says_what_its_keys_and_values_may_take(data: Path) -> None:
    path = data / "gpt_bigcode-q4_0.gguf"
    nbytes = cache_bytes(formats.read(path).config, 2 * N_CTX)
    with LLM(path, kv_memory=nbytes) as llm:
        assert (llm.facts.cache_bytes, llm.facts.cache_type) == (nbytes, "bf16")
        assert llm.stats().n_blocks * 16 == 2 * N_CTX
