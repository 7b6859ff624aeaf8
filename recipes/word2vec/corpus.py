"""Text becomes rows of words, and rows become the batches of windows that word2vec trains on."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.data import thinning
from twotower.part import Facts
from twotower.records import Batch, Ragged

Architecture = Literal["skip-gram", "cbow"]
Subsampling = Literal["code", "paper"]

WORD, WINDOW = "word", "window"
"""The query feature of skip-gram, a word, and that of CBOW, the words around one."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def read_sentences(path: Path) -> list[list[str]]:
    """Lower-cased words of every line of a gzipped text: letters, with apostrophes inside."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [_WORD.findall(line.lower()) for line in lines]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentences end to end as rows of a vocabulary, the most frequent word first."""

    word_V: list[str]
    count_V: NDArray[np.int64]
    token_T: NDArray[np.int32]
    sentence_T: NDArray[np.int32]
    """The sentence each token is in, rising."""

    @staticmethod
    def of(sentences: Iterable[list[str]], *, min_count: int) -> Corpus:
        """Words met fewer than ``min_count`` times are taken out, as if they had not been written."""
        sentences = list(sentences)
        count = Counter(word for sentence in sentences for word in sentence)
        word_V = [word for word, n in count.most_common() if n >= min_count]
        row_of = {word: row for row, word in enumerate(word_V)}
        row_S = [[row_of[word] for word in sentence if word in row_of] for sentence in sentences]
        return Corpus(
            word_V=word_V,
            count_V=np.array([count[word] for word in word_V], np.int64),
            token_T=np.array([row for rows in row_S for row in rows], np.int32),
            sentence_T=np.repeat(np.arange(len(row_S), dtype=np.int32), [len(rows) for rows in row_S]),
        )


def keep_probability(count_V: NDArray[np.int64], *, sample: float, form: Subsampling) -> NDArray[np.float64]:
    """[V] with which probability a token of each word stays in an epoch; 1 for all where ``sample`` is 0.

    The rule is ``thinning.keep_probability`` of the word's share of the tokens, with t = sample.
    """
    if sample == 0:
        return np.ones(len(count_V))
    share_V = torch.from_numpy(count_V / count_V.sum())
    return np.asarray(thinning.keep_probability(share_V, t=sample, form=form).numpy())


def windows(
    token_T: NDArray[np.int32], sentence_T: NDArray[np.int32], centre_C: NDArray[np.int64], radius_C: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(which of C, context word) of every pair: the tokens at most ``radius_C`` places from a centre, in its sentence.

    Pairs are in order of the centres, and inside a window in order of the text.
    """
    widest = int(radius_C.max(initial=0))
    offset_W = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    at_CW = centre_C[:, None] + offset_W
    inside_CW = (np.abs(offset_W) <= radius_C[:, None]) & (at_CW >= 0) & (at_CW < len(token_T))
    at_CW = np.where(inside_CW, at_CW, centre_C[:, None])
    inside_CW &= sentence_T[at_CW] == sentence_T[centre_C][:, None]
    of_P, slot_P = inside_CW.nonzero()
    return of_P, token_T[at_CW[of_P, slot_P]]


class WindowBatches:
    """Batches of centre words with the words around them, drawn anew every epoch from (seed, epoch).

    An epoch first thins the text by ``keep_probability``, so that a window reaches further where frequent words went,
    then visits the tokens that are left in random order, each with a radius uniform on 1 .. ``window``.

    Skip-gram: the query is the centre, and every context word a positive of it. CBOW: the query is the mean of the
    context, the positive is the centre. Known to a query is what its own window has: word2vec only skips the target.

    Source: Mikolov et al., arXiv 1301.3781, sections 3.1 and 3.2; NIPS 2013, section 2.3.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        architecture: Architecture,
        batch_size: int,
        window: int,
        sample: float,
        form: Subsampling = "code",
        seed: int = 0,
    ) -> None:
        self.corpus, self.architecture, self.batch_size, self.window = corpus, architecture, batch_size, window
        self.keep_V = keep_probability(corpus.count_V, sample=sample, form=form)
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, in expectation: how many tokens the thinning leaves is up to chance."""
        return -(-round(float(self.keep_V @ self.corpus.count_V)) // self.batch_size)

    def facts(self) -> Facts:
        """What samplers need to know; words are counted before thinning, as word2vec does."""
        n_words = len(self.corpus.word_V)
        return Facts(
            n_items=n_words,
            n_queries=n_words if self.architecture == "skip-gram" else 0,
            item_count_M=torch.from_numpy(self.corpus.count_V),
            batch_size=self.batch_size,
            batch_of="pairs",
            steps_per_epoch=self.steps_per_epoch,
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        token_T, sentence_T = self.corpus.token_T, self.corpus.sentence_T
        kept_T = rng.random(len(token_T), np.float32) < self.keep_V.astype(np.float32)[token_T]
        token_T, sentence_T = token_T[kept_T], sentence_T[kept_T]
        order = rng.permutation(len(token_T))
        for start in range(0, len(order), self.batch_size):
            centre_C = order[start : start + self.batch_size]
            radius_C = rng.integers(1, self.window, len(centre_C), endpoint=True)
            of_P, context_P = windows(token_T, sentence_T, centre_C, radius_C)
            if len(of_P):
                yield self._batch(token_T[centre_C], of_P, context_P)

    def _batch(self, centre_C: NDArray[np.int32], of_P: NDArray[np.int64], context_P: NDArray[np.int32]) -> Batch:
        """Centres without a context word are no query."""
        length_C = np.bincount(of_P, minlength=len(centre_C))
        alone_C = length_C == 0
        centre_B = torch.from_numpy(centre_C[~alone_C].astype(np.int64))
        context = Ragged(offset=_offset(length_C[~alone_C]), value=torch.from_numpy(context_P.astype(np.int64)))
        return skip_gram(centre_B, context) if self.architecture == "skip-gram" else cbow(centre_B, context)


def _offset(length_B: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(1, np.int64), length_B.cumsum()]))


def skip_gram(centre_B: Tensor, context: Ragged) -> Batch:
    """Each centre asks, each of its context words is a positive."""
    return Batch(
        query={WORD: centre_B},
        query_B=centre_B,
        item_P=context.value,
        of_P=context.owner(),
        weight_P=torch.ones(len(context.value)),
        known=_distinct(context),
    )


def cbow(centre_B: Tensor, context: Ragged) -> Batch:
    """The mean of a context asks, its centre is the positive."""
    length_B = context.lengths()
    mean = torch.repeat_interleave(1.0 / length_B.float(), length_B)
    one_B = torch.arange(len(centre_B) + 1)
    return Batch(
        query={WINDOW: Ragged(offset=context.offset, value=context.value, weight=mean)},
        query_B=torch.full_like(centre_B, -1),
        item_P=centre_B,
        of_P=one_B[:-1],
        weight_P=torch.ones(len(centre_B)),
        known=Ragged(offset=one_B, value=centre_B),
    )


def _distinct(lists: Ragged) -> Ragged:
    """The same lists, rising and without repeats."""
    stride = int(lists.value.max()) + 1
    key = (lists.owner() * stride + lists.value).sort().values
    key = key[torch.cat([key.new_ones(1, dtype=torch.bool), key[1:] > key[:-1]])]
    length = (key // stride).bincount(minlength=len(lists))
    return Ragged(offset=torch.cat([length.new_zeros(1), length.cumsum(0)]), value=key % stride)
