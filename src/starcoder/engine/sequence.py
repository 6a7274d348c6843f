"""Sequence: one request's life, from waiting to finished. Plain data; others move it along."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypedDict

from starcoder.core.batch import Batch
from starcoder.engine.events import RequestStats
from starcoder.engine.kv_tree import Node
from starcoder.errors import InputError
from starcoder.sampling.logprobs import TokenLogprobs
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import Constraint, Sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["How", "Sequence", "Status", "Windows", "batch_of", "check_prompt"]


class Windows(Protocol):
    """Parts of a prompt that may stand for it where there is no time for all of it."""

    @property
    def lengths(self) -> Ids[int]:
        """Tokens of each, ascending; the last is the whole prompt."""

    def window(self, i: int) -> list[int]:
        """The token ids of one."""


class How(TypedDict, total=False):
    """How a request is run, beside its options."""

    stop_ids: Iterable[int]  # choosing one of these ends the text; they are not part of it
    constraint: Constraint | None  # what may be chosen; by default every token
    wants_logits: bool  # give the logits of every prompt token; then nothing is generated
    windows: Windows | None  # what to evaluate of the prompt if time is short; by default, all
    came: float  # when it was handed in, on the engine's clock; by default, now


class Status(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  # has no share of the cache: it is new, or was put off for others
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """The ids of one request and how far they have come.

    The first `n_computed` tokens are in the key/value cache; position p is in block
    `block_table[p // BLOCK_LEN]`.
    """

    id: int
    tokens: list[int]  # the prompt, then what was generated
    n_prompt: int
    max_tokens: int  # tokens to generate, already clamped to the context
    sampler: Sampler
    stop_ids: frozenset[int]  # sampling one of these ends the sequence
    constraint: Constraint | None = None  # what may be chosen
    wants_logits: bool = False  # give the logits of the prompt instead of generating
    priority: int = 0  # the lowest number is the most urgent
    salt: bytes = b""  # computed prefixes are shared with requests of the same salt alone

    windows: Windows | None = None  # what may stand for the prompt until it is admitted
    prompt_end: float = math.inf  # when the prompt should be computed, on the engine's clock
    end: float = math.inf  # when the answer should be there

    status: Status = Status.WAITING
    n_said_again: int = 0  # tokens that were chosen, and say the end of the prompt
    n_skipped: int = 0  # of the prompt, what is not evaluated, for lack of time
    n_computed: int = 0
    n_cached: int = 0  # of these, what was in the cache when the sequence came
    n_heard: int = 0  # logits of the prompt that were given
    path: list[Node] = field(default_factory=list)  # its first blocks, which others may share
    block_table: list[int] = field(default_factory=list)
    last_turn: int = -1  # the last step that it was in

    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    n_decoded: int = 0  # forward passes of single tokens

    @classmethod
    def of(
        cls,
        id: int,  # noqa: A002
        prompt: Ids[int],
        options: GenerationOptions,
        n_ctx: int,
        how: How,
    ) -> Sequence:
        """The sequence of a request, whose prompt was checked.

        Its `max_tokens` are clamped to what a context of `n_ctx` tokens has left.
        """
        wants_logits, came = how.get("wants_logits", False), how.get("came", 0.0)
        room = 0 if wants_logits else n_ctx - len(prompt)
        end = came + _seconds(options.max_time_ms)
        return cls(
            id=id,
            tokens=list(prompt),
            n_prompt=len(prompt),
            max_tokens=min(options.max_tokens, room),
            sampler=Sampler(options),
            stop_ids=frozenset(how.get("stop_ids", ())),
            constraint=how.get("constraint"),
            wants_logits=wants_logits,
            priority=options.priority,
            salt=options.salt.encode(),
            windows=how.get("windows"),
            prompt_end=min(end, came + _seconds(options.max_prompt_ms)),
            end=end,
        )

    @property
    def n_left(self) -> int:
        """Tokens that are known but not yet in the cache."""
        return len(self.tokens) - self.n_computed

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.n_prompt - self.n_said_again

    @property
    def has_said(self) -> bool:
        """Whether any token was chosen."""
        return len(self.tokens) > self.n_prompt

    @property
    def urgency(self) -> tuple[int, int]:
        """What orders requests: the smallest comes first."""
        return self.priority, self.id

    @property
    def stats(self) -> RequestStats:
        """What the request has cost so far."""
        return RequestStats(
            min(self.n_computed, self.n_prompt + self.n_said_again),
            self.n_cached,
            self.n_decoded,
            self.prompt_seconds,
            self.decode_seconds,
            self.sample_seconds,
            self.n_skipped,
        )

    def advance(self, n: int, seconds: float) -> None:
        """Count `n` tokens as computed, in so many seconds."""
        if self.n_generated:
            self.decode_seconds += seconds
            self.n_decoded += 1
        else:
            self.prompt_seconds += seconds
        self.n_computed += n

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The token that comes next, by the logits (n_vocab,) of its last one."""
        allowed = None if self.constraint is None else self.constraint.allowed()
        is_early = self.n_generated < self.sampler.options.min_tokens
        banned = self.stop_ids if is_early else ()
        token = self.sampler.sample(logits, self.tokens, allowed, banned)
        if self.constraint is not None:
            self.constraint.take(token)
        return token

    def say(self, token: int, n_ctx: int) -> str | None:
        """Put a token that was chosen behind the others; why nothing may follow, or None."""
        self.tokens.append(token)
        constraint = self.constraint
        if constraint is not None:
            self.n_said_again += constraint.is_in_prompt
            if constraint.is_over:
                return "stop"
        is_full = self.n_generated == self.max_tokens or len(self.tokens) == n_ctx
        return "length" if is_full else None

    def logprobs(self, token: int, logits: NDArray[np.float32]) -> TokenLogprobs | None:
        """Those of a token by its logits (n_vocab,), if they were asked for."""
        n_top = self.sampler.options.logprobs
        return None if n_top is None else TokenLogprobs.of(logits, token, n_top)

    def chunk(self, n: int) -> tuple[list[int], int, list[int]]:
        """What it puts in a batch: its next `n` tokens, their first position, its blocks."""
        first = self.n_computed
        return self.tokens[first : first + n], first, self.block_table

    def logit_rows(self, n: int, start: int) -> range:
        """The rows whose logits it needs, of its chunk of `n` tokens that is in a batch at `start`.

        To choose the next token, the row of its last known token; to give logits, all.
        """
        if self.wants_logits:
            return range(start, start + n)
        return range(start + n - (n == self.n_left), start + n)


def batch_of(chunks: Iterable[tuple[Sequence, int]]) -> Batch:
    """The next tokens of some sequences, as many of each as is said, and the logits they need."""
    rows, parts, n_tokens = list[int](), [], 0
    for sequence, n in chunks:
        rows.extend(sequence.logit_rows(n, n_tokens))
        parts.append(sequence.chunk(n))
        n_tokens += n
    return Batch.of(parts, rows)


def _seconds(ms: float | None) -> float:
    return math.inf if ms is None else ms / 1e3


def check_prompt(prompt: Ids[int], n_ctx: int, n_vocab: int) -> None:
    """Refuse a prompt that cannot run.

    Raises:
        InputError: it is empty or too long, or has an id that no token has.
    """
    if not prompt:
        raise InputError("prompt", "no tokens", "at least one")
    if len(prompt) > n_ctx:
        advice = "shorten it, or raise the context with -c or n_ctx if the model allows"
        raise InputError("prompt", f"{len(prompt)} tokens", f"at most {n_ctx}", advice)
    strange = next((token for token in prompt if not 0 <= token < n_vocab), None)
    if strange is not None:
        raise InputError("prompt", f"token id {strange}", f"0 to {n_vocab - 1}")
