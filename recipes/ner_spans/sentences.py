"""Commands of tldr pages as sentences whose entities are the arguments a reader has to fill in.

``tar cf {{target.tar}} {{file1 file2}}`` is the sentence ``tar cf target.tar file1 file2`` with the entities (2, 2) and
(3, 4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.tldr import part_of, read_pages
from numpy.typing import NDArray

_PIECE = re.compile(r"\{\{(.*?)\}\}")
LONGEST = 24
"""Tokens; the few longer commands are left out."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """Tokens and labelled spans."""

    token: tuple[str, ...]
    span: NDArray[np.int64]
    """[m, 2] first and last token, distinct."""


def sentences_of(commands: list[str]) -> list[Sentence]:
    """Commands that are one line of at most ``LONGEST`` tokens, each once; an argument glued to other text is cut off
    as a token of its own."""
    found = []
    for command in dict.fromkeys(commands):
        tokens: list[str] = []
        spans = []
        for at, piece in enumerate(_PIECE.split(command)):
            words = piece.split()
            if at % 2 and words:  # what stood between braces
                spans.append((len(tokens), len(tokens) + len(words) - 1))
            tokens += words
        if 0 < len(tokens) <= LONGEST and "\n" not in command:
            found.append(Sentence(tuple(tokens), np.array(spans, np.int64).reshape(-1, 2)))
    return found


def read_parts(path: Path) -> dict[str, list[Sentence]]:
    """Sentences of train, valid and test pages; all pages of a command are of one part."""
    commands: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for page in read_pages(path):
        commands[part_of(page["command"])] += page["commands"]
    return {part: sentences_of(its) for part, its in commands.items()}


def with_missing(sentences: list[Sentence], share: float, seed: int) -> list[Sentence]:
    """The same sentences with that share of their labels lost, as hurried annotators lose them."""
    rng = np.random.default_rng(seed)
    return [replace(s, span=s.span[rng.random(len(s.span)) >= share]) for s in sentences]
