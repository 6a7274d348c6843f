"""Which tokens end a text, from all the files of a Hugging Face directory that say so.

config.json and generation_config.json name ids, one or a list; tokenizer_config.json and
special_tokens_map.json name a token; a chat template puts its own behind what the assistant says.
The first that is named ends a document, and generation stops at every one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starcoder.errors import FormatError
from starcoder.formats.hf.config import Settings
from starcoder.formats.hf.files import load_optional
from starcoder.formats.hf.names import listed
from starcoder.formats.io.mapped import map_file
from starcoder.formats.io.reject import reject, shown
from starcoder.formats.special import find_id
from starcoder.model.vocab import Vocab

__all__ = ["template_ends", "with_ends"]

_MAX_TEMPLATES = 1 << 16  # characters of all; those of the family have 1 kB

# What follows a message of the assistant in the templates that are about.
# fmt: off
_TURN_ENDS = (
    "<|im_end|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>", "<|endofturn|>",
    "<|eot_id|>", "<|eom_id|>", "<|eot|>",
)
# fmt: on

# In a template: the content of a message, filters, and what may stand between it and a token.
_AFTER_CONTENT = re.compile(
    r"""\bcontent['"]?\]?(?:\s*\|\s*\w+)*[\s'"+{}()~-]*(?:\\[nr])*([^\s'"\\{}]{1,64})"""
)
_ROLES = ("user", "system", "assistant", "tool", "function")
_ROLE = re.compile(rf"""['"]({"|".join(_ROLES)})['"]|\belse\b""")


def with_ends(settings: Settings, vocab: Vocab, notices: list[str]) -> Vocab:
    """The vocabulary with its ends; ids that it lacks are only worth a notice.

    Raises:
        FormatError: something in config.json that is no id.
    """
    folder = settings.path.parent
    generation = load_optional(folder / "generation_config.json", notices)
    tokenizer = load_optional(folder / "tokenizer_config.json", notices)
    special = load_optional(folder / "special_tokens_map.json", notices)
    _check_ids(settings)
    names = _Names(vocab, notices)
    found = [*names.ids("config.json", settings.values, "eos")]
    found += names.ids("generation_config.json", generation, "eos")
    found += names.texts("tokenizer_config.json", tokenizer)
    found += names.texts("special_tokens_map.json", special)
    found += _chat_ends(folder, tokenizer, names, notices)
    starts = [*names.ids("config.json", settings.values, "bos")]
    starts += names.ids("generation_config.json", generation, "bos")
    return replace(
        vocab,
        eos_id=found[0] if found else None,
        bos_id=starts[0] if starts else None,
        other_end_ids=frozenset(found[1:]) - frozenset(found[:1]),
    )


def _check_ids(settings: Settings) -> None:
    """config.json is strict: what is no id there is an error, as for its other values."""
    for key in ("eos_token_id", "bos_token_id"):
        value = settings.values.get(key)
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(i) is int for i in ids):
            reject(settings.path, key, repr(value)[:80], "an id, or a list of ids")


class _Names:
    """Ids and texts of special tokens, looked up in one vocabulary."""

    def __init__(self, vocab: Vocab, notices: list[str]) -> None:
        self.vocab, self.notices = vocab, notices
        self.by_text = {vocab.tokens[i]: i for i in sorted(vocab.special_ids, reverse=True)}

    def find(self, text: str) -> int | None:
        return self.by_text.get(text.encode("utf-8", "replace"))

    def ids(self, file: str, table: Mapping[str, Any], kind: str) -> Iterator[int]:
        """The ids that a file names."""
        key = f"{kind}_token_id"
        value = table.get(key)
        strange = []
        for token_id in value if isinstance(value, list) else [value]:
            found = find_id(token_id, self.vocab)
            if found is not None:
                yield found
            elif token_id is not None:
                strange.append(shown(repr(token_id), 40))
        if strange:
            known = f"an id of the vocabulary (0 to {len(self.vocab.tokens) - 1})"
            self.notices.append(f"{file}: {key} is not {known}: {listed(strange)}")

    def texts(self, file: str, table: Mapping[str, Any]) -> Iterator[int]:
        """The id of the end token that a file spells."""
        value = table.get("eos_token")
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str) or not text:
            return
        token_id = self.find(text)
        if token_id is not None:
            yield token_id
        elif text.encode("utf-8", "replace") not in self.vocab.unembedded:
            what = f"{file}: eos_token {shown(repr(text), 80)}"
            self.notices.append(f"{what} is no special token of the vocabulary")


# ------------------------------------------------------------------------------------------------
# Chat templates


def _chat_ends(
    folder: Path, tokenizer: Mapping[str, Any], names: _Names, notices: list[str]
) -> Iterator[int]:
    left = _MAX_TEMPLATES
    for template in _templates(folder, tokenizer, notices):
        text, left = template[:left], max(0, left - len(template))
        for end in template_ends(text, names.by_text):
            token_id = names.find(end)
            if token_id is not None:
                yield token_id


def _templates(folder: Path, tokenizer: Mapping[str, Any], notices: list[str]) -> Iterator[str]:
    """The template, or the several, in tokenizer_config.json and in a file of its own."""
    value = tokenizer.get("chat_template")
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        text = entry.get("template") if isinstance(entry, dict) else entry
        if isinstance(text, str):
            yield text
    path = folder / "chat_template.jinja"
    if os.path.exists(path):
        try:
            yield map_file(path)[:_MAX_TEMPLATES].decode("utf-8", "replace")
        except FormatError as error:
            notices.append(f"{path.name} is not used: {error.finding}")


def template_ends(template: str, special: Mapping[bytes, int]) -> list[str]:
    """The special tokens that a template puts behind a message of the assistant.

    No template is run. Those with the usual names count wherever they stand; others only right
    behind the content of a message, where the last role that is asked for is not another's.
    """
    ends = [name for name in _TURN_ENDS if name in template and name.encode() in special]
    branches = _branches(template)
    at = 0
    for match in _AFTER_CONTENT.finditer(template):
        while at < len(branches) and branches[at][0] < match.start():
            at += 1
        candidate = match[1]
        starts = (candidate[:n] for n in range(len(candidate), 0, -1))
        token = next((s for s in starts if s.encode("utf-8", "replace") in special), None)
        if token is None or token in ends or any(role in token.lower() for role in _ROLES):
            continue
        if not at or branches[at - 1][1]:
            ends.append(token)
    return ends


def _branches(template: str) -> list[tuple[int, bool]]:
    """Where a role is asked for, and whether what follows is of the assistant."""
    branches: list[tuple[int, bool]] = []
    for match in _ROLE.finditer(template):
        other = bool(branches) and not branches[-1][1]  # so its else may be the assistant's
        branches.append((match.start(), match[1] == "assistant" or (match[1] is None and other)))
    return branches
