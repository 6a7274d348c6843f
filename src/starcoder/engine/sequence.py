"""Sequence: one request's life, from waiting to finished. The engine moves it along."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from starcoder.engine.events import RequestStats
from starcoder.errors import InputError
from starcoder.sampling.sampler import Sampler

__all__ = ["Sequence", "Status", "check_prompt"]


class Status(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  # has no cache blocks yet
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
    wants_logits: bool = False  # give the logits of the prompt instead of generating

    status: Status = Status.WAITING
    n_computed: int = 0
    block_table: list[int] = field(default_factory=list)

    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    n_decoded: int = 0  # forward passes of single tokens

    @property
    def n_left(self) -> int:
        """Tokens that are known but not yet in the cache."""
        return len(self.tokens) - self.n_computed

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.n_prompt

    @property
    def max_len(self) -> int:
        """The most tokens it can come to hold."""
        return self.n_prompt + self.max_tokens

    @property
    def stats(self) -> RequestStats:
        """What the request has cost so far."""
        return RequestStats(
            min(self.n_computed, self.n_prompt),
            self.n_decoded,
            self.prompt_seconds,
            self.decode_seconds,
            self.sample_seconds,
        )

    def advance(self, n: int, seconds: float) -> None:
        """Count `n` tokens as computed, in so many seconds."""
        if self.n_generated:
            self.decode_seconds += seconds
            self.n_decoded += 1
        else:
            self.prompt_seconds += seconds
        self.n_computed += n

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
