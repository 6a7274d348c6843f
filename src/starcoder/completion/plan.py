"""Plan: what a prompt and its options are for the engine, and how its tokens are read as text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from starcoder.completion.answer_text import AnswerText, Stopping
from starcoder.completion.constraints import together
from starcoder.completion.prompts import prompt_ids
from starcoder.errors import InputError
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import Constraint
from starcoder.text.grammar import Grammars
from starcoder.text.heal import Healer
from starcoder.text.tokenizer import Tokenizer
from starcoder.text.windows import PromptWindows

__all__ = ["Plan", "Planner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One request, ready for the engine."""

    ids: list[int]  # what is computed before the first token is chosen
    n_prompt: int  # ids of the prompt as it was given
    n_prompt_bytes: int  # of its end, which is said again
    options: GenerationOptions
    stop_ids: frozenset[int]  # that end the answer
    constraint: Constraint | None
    windows: PromptWindows | None  # of the ids, where time is limited
    tokenizer: Tokenizer

    def new_text(self) -> AnswerText:
        """The text of the answer, before its first token."""
        options = self.options
        return AnswerText(
            self.tokenizer,
            options.stop,
            n_unsearched=options.min_tokens,
            n_prompt_bytes=self.n_prompt_bytes,
        )


class Planner:
    """Makes plans; what requests share is made when the first one needs it.

    Args:
        tokenizer: the model's.
        n_ctx: most tokens of prompt and output together.
    """

    def __init__(self, tokenizer: Tokenizer, n_ctx: int) -> None:
        self._tokenizer, self._vocab, self._n_ctx = tokenizer, tokenizer.vocab, n_ctx

    def plan(self, prompt: object, options: GenerationOptions) -> Plan:
        """A plan for one prompt: text or token ids.

        The end of a text is healed, if that is wanted; not where a grammar says how the answer
        begins.

        Raises:
            InputError: a prompt that is neither, or too long a text; a biased id that no token has;
                a grammar that is none.
        """
        ids = prompt_ids(prompt, self._tokenizer, self._n_ctx)
        self._check_biases(options)
        constraints: list[Constraint] = []
        n_prompt, n_prompt_bytes = len(ids), 0
        if options.form is not None:
            constraints.append(self._grammars.make(options.form, getattr(options, options.form)))
        elif options.heal and isinstance(prompt, str):
            ids, healing = self._healer.heal(ids)
            if healing is not None:
                constraints.append(healing)
                n_prompt_bytes = healing.n_bytes
        is_timed = options.max_prompt_ms is not None or options.max_time_ms is not None
        plan = Plan(
            ids=ids,
            n_prompt=n_prompt,
            n_prompt_bytes=n_prompt_bytes,
            options=options,
            stop_ids=frozenset() if options.ignore_eos else self._vocab.end_ids,
            constraint=None,
            windows=PromptWindows(ids, self._vocab) if is_timed else None,
            tokenizer=self._tokenizer,
        )
        if options.stop:
            constraints.append(Stopping(plan.new_text()))
        return replace(plan, constraint=together(constraints))

    @cached_property
    def _healer(self) -> Healer:
        return Healer(self._vocab)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer)

    def _check_biases(self, options: GenerationOptions) -> None:
        if options.logit_bias:
            last, n_vocab = options.logit_bias[-1][0], len(self._vocab.tokens)
            if last >= n_vocab:
                raise InputError("logit_bias", f"token id {last}", f"0 to {n_vocab - 1}")
