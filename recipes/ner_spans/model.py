"""A span classifier: the vectors of a span's two ends say whether it is an entity."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes.ner_spans.sentences import Sentence
from recipes.ner_spans.spans import all_spans, sample_unlabelled, unlabelled

BUCKETS = 20_000
"""Of hashed words and their pieces."""


def rows_of(word: str) -> list[int]:
    """A word and its pieces of three characters, hashed."""
    text = f"<{word}>"
    pieces = [text, *(text[at : at + 3] for at in range(len(text) - 2))]
    return [zlib.crc32(piece.encode()) % BUCKETS for piece in pieces]


class SpanModel(nn.Module):
    """Words -> bags of pieces -> one bidirectional GRU -> score of (first, last)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, width, mode="mean")
        self.gru = nn.GRU(width, width, bidirectional=True, batch_first=True)
        self.score = nn.Sequential(nn.Linear(8 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def tokens(self, sentences: list[Sentence]) -> Tensor:
        """[S, L, 2 D]"""
        longest = max(len(s.token) for s in sentences)
        rows = [rows_of(word) for s in sentences for word in s.token]
        offset = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
        flat = self.words(torch.tensor([row for word in rows for row in word]), offset)
        padded = flat.new_zeros(len(sentences), longest, flat.shape[1])
        length = torch.tensor([len(s.token) for s in sentences])
        padded[torch.arange(longest) < length[:, None]] = flat
        packed = nn.utils.rnn.pack_padded_sequence(padded, length, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)[0]

    def forward(self, sentences: list[Sentence], spans: list[NDArray[np.int64]]) -> Tensor:
        """Logit of every span of every sentence, end to end."""
        token_SLD = self.tokens(sentences)
        of = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([len(own) for own in spans]))
        first, last = torch.from_numpy(np.concatenate(spans)).T
        a, b = token_SLD[of, first], token_SLD[of, last]
        return self.score(torch.cat([a, b, a - b, a * b], 1))[:, 0]


def train(sentences: list[Sentence], rate: float | None, *, epochs: int, seed: int, batch: int = 128) -> SpanModel:
    """Binary cross-entropy of labelled spans and of ``rate`` unlabelled ones a token; of all without a rate."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SpanModel()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for some in _batches(sentences, batch, rng):
            negative = [
                unlabelled(len(s.token), s.span) if rate is None else sample_unlabelled(len(s.token), s.span, rate, rng)
                for s in some
            ]
            spans = [np.concatenate([s.span, its]) for s, its in zip(some, negative, strict=True)]
            label = np.concatenate([np.arange(len(its)) < len(s.span) for s, its in zip(some, spans, strict=True)])
            loss = F.binary_cross_entropy_with_logits(model(some, spans), torch.from_numpy(label).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


def _batches(sentences: list[Sentence], size: int, rng: np.random.Generator) -> Iterator[list[Sentence]]:
    order = rng.permutation(len(sentences))
    for start in range(0, len(order), size):
        yield [sentences[at] for at in order[start : start + size]]


@torch.no_grad()
def f1(model: SpanModel, sentences: list[Sentence]) -> float:
    """Of exact spans: those above one half, the surest first, that overlap none before them."""
    right = said = true = 0
    for start in range(0, len(sentences), 512):
        some = sentences[start : start + 512]
        spans = [all_spans(len(s.token)) for s in some]
        of_each = model(some, spans).split([len(own) for own in spans])
        for sentence, own, logit in zip(some, spans, of_each, strict=True):
            found = _decode(own, logit.numpy())
            labelled = set(map(tuple, sentence.span.tolist()))
            right, said, true = right + len(found & labelled), said + len(found), true + len(labelled)
    return 2 * right / max(said + true, 1)


def _decode(spans: NDArray[np.int64], logit: NDArray[np.float32]) -> set[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for at in np.argsort(-logit):
        if logit[at] <= 0:
            break
        first, last = spans[at].tolist()
        if all(last < a or first > b for a, b in found):
            found.append((first, last))
    return set(found)
