"""What was computed, kept in a file: it serves the next start, or is refused in one line."""

from __future__ import annotations

import json
import stat
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from starcoder import LLM, prompt_cache
from starcoder.core.batch import BLOCK_LEN
from starcoder.engine import Engine, Event, Loop, Restorer
from starcoder.errors import FormatError, StarcoderError, WriteError
from starcoder.prompt_cache import ForeignFileError
from starcoder.sampling.options import GenerationOptions
from tests.helpers.fake_model import N_CTX, FakeCache, FakeModel

MARK = "ab" * 32
MANY = 1 << 40


def loop(n_blocks: int = 32, model: FakeModel | None = None) -> Loop:
    positions = n_blocks * BLOCK_LEN
    return Loop(Engine(model or FakeModel(), n_ctx=N_CTX, n_positions=positions, n_batch=64))


def ask(made: Loop, prompt: list[int], n: int = 3, salt: str = "") -> tuple[list[int | None], int]:
    """The tokens of an answer, and how many of its prompt were in the cache."""
    request = made.submit(prompt, GenerationOptions(max_tokens=n, salt=salt))
    tokens = list[int | None]()
    while True:
        event = request.wait(len(tokens))
        assert event is not None
        tokens.append(event.token)
        if event.finish_reason:
            return tokens, event.stats.cached_tokens


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file with one prompt of 40 tokens, and one of a salt."""
    made = loop()
    ask(made, list(range(40)))
    ask(made, [5] * 20, salt="me")
    assert prompt_cache.save(made, tmp_path / "kept", MARK, MANY) == 40 + 2 + 20 + 2
    return tmp_path / "kept"


def test_what_was_kept_is_not_computed_again(kept: Path) -> None:
    made, prompt = loop(), [*range(40), 7, 7]
    assert prompt_cache.load(made, kept, MARK) == 64
    assert ask(made, prompt) == (ask(loop(), prompt)[0], 40)
    assert ask(made, [5] * 21, salt="me")[1] == 20
    assert ask(made, [5] * 21, salt="you")[1] == 0


def test_a_file_that_is_taken_over_twice_is_there_once(kept: Path) -> None:
    made = loop()
    for _ in range(3):
        prompt_cache.load(made, kept, MARK)
    stats = made.stats()
    assert (stats.n_idle_blocks, stats.n_free_blocks) == (5, 27)


def test_no_more_is_taken_over_than_there_is_room_for(kept: Path) -> None:
    made = loop(n_blocks=4)
    ask(made, [9] * 30)
    assert prompt_cache.load(made, kept, MARK) <= 2 * BLOCK_LEN
    assert ask(made, [9] * 31)[1] == 30, "what was there stays"
    assert ask(made, list(range(42)))[0] == ask(loop(), list(range(42)))[0]


def test_what_was_used_last_is_kept_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    made = loop()
    for first in range(4):
        ask(made, [first] * 40)
    ask(made, [1] * 40)
    n_bytes = 3 * made.call(lambda engine: engine.cache.block_bytes)
    assert prompt_cache.save(made, tmp_path / "kept", MARK, n_bytes) <= 48
    other = loop()
    prompt_cache.load(other, tmp_path / "kept", MARK)
    assert [ask(other, [first] * 40)[1] >= 32 for first in range(4)] == [False, True, False, False]


def test_requests_go_on_while_a_file_is_written(tmp_path: Path) -> None:
    made, expected = loop(n_blocks=8), ask(loop(), [8] * 30, 30)[0]
    for first in range(3):
        ask(made, [first] * 30)
    found = list[object]()
    thread = threading.Thread(target=lambda: found.append(ask(made, [8] * 30, 30)[0]))
    thread.start()
    for i in range(20):
        prompt_cache.save(made, tmp_path / f"kept-{i}", MARK, MANY)
    thread.join()
    assert found == [expected]
    stats = made.stats()
    assert stats.n_free_blocks + stats.n_idle_blocks == 8


def test_a_request_is_answered_while_a_full_cache_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = loop(n_blocks=8)
    for first in range(4):
        ask(made, [first] * 30)
    assert made.stats().n_free_blocks == 0
    prompt, read, found = [8] * (N_CTX - 4), FakeCache.read, list[object]()

    def read_while_asked(cache: FakeCache, blocks: list[int]) -> np.ndarray:
        found.append(ask(made, prompt)[0])
        return read(cache, blocks)

    monkeypatch.setattr(FakeCache, "read", read_while_asked)
    prompt_cache.save(made, tmp_path / "kept", MARK, MANY)
    assert found == [ask(loop(), prompt)[0]] * 2
    monkeypatch.undo()
    other = loop()
    prompt_cache.load(other, tmp_path / "kept", MARK)
    assert ask(other, [3] * 31)[1] == 30, "what was used last is in the file"


def test_of_a_cache_of_one_context_most_is_kept_and_taken_over(tmp_path: Path) -> None:
    made, other = loop(n_blocks=N_CTX // BLOCK_LEN), loop(n_blocks=N_CTX // BLOCK_LEN)
    prompt = list(range(45))
    ask(made, [*prompt, *range(15)], 4)
    assert made.stats().n_free_blocks == 0
    assert prompt_cache.save(made, tmp_path / "kept", MARK, MANY) == 48
    prompt_cache.load(other, tmp_path / "kept", MARK)
    assert ask(other, prompt) == (ask(loop(), prompt)[0], 44)


def test_a_request_is_answered_while_a_file_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled, made = loop(n_blocks=16), loop(n_blocks=8)
    for first in range(8):
        ask(filled, [first] * 30)
    prompt_cache.save(filled, tmp_path / "kept", MARK, MANY)
    prompt, finish, found = [9] * (N_CTX - 4), Restorer.finish, list[Event]()
    engine = made.call(lambda engine: engine)

    def finish_after_a_request(restorer: Restorer) -> int:
        engine.submit(prompt, GenerationOptions(max_tokens=3))
        for _ in range(20):
            found.extend(engine.step())
        return finish(restorer)

    monkeypatch.setattr(Restorer, "finish", finish_after_a_request)
    assert prompt_cache.load(made, tmp_path / "kept", MARK) == 4 * BLOCK_LEN
    assert [event.token for event in found] == ask(loop(), prompt)[0]
    stats = made.stats()
    assert stats.n_free_blocks + stats.n_idle_blocks == 8


# ---- files that are no good ----------------------------------------------------------------------


def refused(path: Path, mark: str = MARK) -> str:
    """What is said of a file, of which nothing is taken over."""
    made = loop()
    with pytest.raises(FormatError) as caught:
        prompt_cache.load(made, path, mark)
    stats = made.stats()
    assert (stats.n_free_blocks, stats.n_blocks) == (32, 32)
    assert ask(made, list(range(40))) == ask(loop(), list(range(40)))
    return str(caught.value)


def test_any_byte_that_changed_is_found(kept: Path) -> None:
    whole = kept.read_bytes()
    for at in {*range(0, len(whole), 41), *range(24), len(whole) - 1}:
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert "\n" not in refused(kept)


@pytest.mark.parametrize("left", [1, 12, 13, 15, 16, 20, 24, 100, -1])
def test_a_file_that_was_cut_is_refused(kept: Path, left: int) -> None:
    kept.write_bytes(kept.read_bytes()[:left])
    refused(kept)
    assert_is_written_anew(kept)


def assert_is_written_anew(path: Path) -> None:
    made = loop()
    ask(made, list(range(40)))
    prompt_cache.save(made, path, MARK, MANY)
    assert prompt_cache.load(loop(), path, MARK) == 42


def test_an_empty_file_holds_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    assert prompt_cache.load(loop(), tmp_path / "kept", MARK) == 0
    assert_is_written_anew(tmp_path / "kept")


def test_a_new_file_is_its_owners_alone_and_one_that_is_replaced_keeps_its_permissions(
    kept: Path,
) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.chmod(0o640)
    assert_is_written_anew(kept)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


@pytest.mark.parametrize("crc", ["Infinity", "NaN", "null", '"x"'])
def test_a_table_that_makes_no_sense_is_refused_where_its_checksum_is_right(
    kept: Path, crc: str
) -> None:
    whole = kept.read_bytes()
    n = int.from_bytes(whole[16:20], "little")
    right = json.loads(whole[24 : 24 + n])["crc"]
    table = whole[24 : 24 + n].replace(b'"crc":%d' % right, b'"crc":' + crc.encode())
    head = len(table).to_bytes(4, "little") + zlib.crc32(table).to_bytes(4, "little")
    kept.write_bytes(whole[:16] + head + table + whole[24 + n :])
    assert "found a damaged table" in refused(kept)


def test_a_file_of_another_model_is_refused_and_stays(kept: Path) -> None:
    whole = kept.read_bytes()
    assert "found a cache of another model" in refused(kept, "cd" * 32)
    with pytest.raises(ForeignFileError, match="choose another file"):
        prompt_cache.save(loop(), kept, "cd" * 32, MANY)
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, name: str) -> None:
    assert "\n" not in refused(tmp_path / name)
    with pytest.raises(WriteError):
        prompt_cache.save(loop(), tmp_path / name, MARK, MANY)


def test_a_file_that_is_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("It was a dark and stormy night.")
    assert "found another kind of file" in refused(path)
    with pytest.raises(ForeignFileError):
        prompt_cache.save(loop(), path, MARK, MANY)
    assert path.read_text().startswith("It was")


def test_a_file_of_another_version_is_refused_and_replaced(kept: Path) -> None:
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(b"kv 01", b"kv 00", 1))
    assert "another version" in refused(kept)
    assert_is_written_anew(kept)


def test_no_file_and_no_folder_are_said(tmp_path: Path) -> None:
    assert "no file that can be read" in refused(tmp_path / "none")
    refused(tmp_path)
    for path in (tmp_path, tmp_path / "none" / "kept"):
        with pytest.raises(WriteError):
            prompt_cache.save(loop(), path, MARK, MANY)


def test_an_engine_that_began_anew_meanwhile_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = loop()
    ask(made, list(range(40)))
    read = FakeCache.read

    def begin_anew(cache: FakeCache, blocks: list[int]) -> np.ndarray:
        made.call(lambda engine: engine.clear())
        return read(cache, blocks)

    monkeypatch.setattr(FakeCache, "read", begin_anew)
    with pytest.raises(StarcoderError, match="began anew"):
        prompt_cache.save(made, tmp_path / "new", MARK, MANY)
    assert not (tmp_path / "new").exists()


# ---- models --------------------------------------------------------------------------------------


def test_a_model_answers_the_same_from_a_file_of_its_own(data: Path, tmp_path: Path) -> None:
    path, prompt = data / "gpt_bigcode-q4_0.gguf", "def fibonacci(n):\n" * 8
    with LLM(path) as first:
        expected = first.generate(prompt, max_tokens=12, heal=False)
        assert first.save_cache(tmp_path / "kept") > expected.prompt_tokens
    with LLM(path, n_threads=1) as second:
        second.load_cache(tmp_path / "kept")
        found = second.generate(prompt, max_tokens=12, heal=False)
    assert found.tokens == expected.tokens
    assert found.cached_tokens == expected.prompt_tokens - 1
    with (
        LLM(data / "gpt_bigcode-legacy-q4_0.bin") as other,
        pytest.raises(FormatError, match="another"),
    ):
        other.load_cache(tmp_path / "kept")
