"""word2vec as a run: which features, towers, negatives and loss it is, and the loop that trains it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.word2vec.corpus import WINDOW, WORD, Architecture, Corpus, Subsampling, WindowBatches
from twotower.config import Run, Training
from twotower.data.columns import Columns
from twotower.data.splits import GivenSplit
from twotower.losses import SGNS, BinaryCrossEntropy, HierarchicalSoftmax, Loss
from twotower.negatives import Popularity
from twotower.optimisers import RowwiseAdam
from twotower.records import Ragged
from twotower.schema import Categories, Id, Interactions, Schema
from twotower.tables import TableSettings
from twotower.towers import TwoTower
from twotower.training.loop import learning_rate
from twotower.training.step import Model, Stepper

IN, OUT = "in", "out"
"""The tables: word vectors, which are what is kept, and output vectors, which word2vec throws away."""


PLACES = 8192
"""Noise words of a tile: at 3 MiB their vectors stay in a processor's cache, and few calls are made."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that word2vec has, at gensim's defaults."""

    dim: int = 100
    window: int = 5
    negative: int = 5
    sample: float = 1e-3
    min_count: int = 5
    epochs: int = 5


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the four word2vecs, and how it is trained here."""

    architecture: Architecture
    hierarchical: bool
    batch_size: int
    """Centre words of a batch."""
    lr: float


ARMS = {
    "sg-ns": Arm(architecture="skip-gram", hierarchical=False, batch_size=2048, lr=0.02),
    "cbow-ns": Arm(architecture="cbow", hierarchical=False, batch_size=4096, lr=0.03),
    "sg-hs": Arm(architecture="skip-gram", hierarchical=True, batch_size=2048, lr=0.02),
    "cbow-hs": Arm(architecture="cbow", hierarchical=True, batch_size=4096, lr=0.03),
}


@dataclass(frozen=True, kw_only=True)
class TableSizes:
    """Rows of every embedding table."""

    table_sizes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a model reads of a store, for text that never lay in one: a word has the same row on both sides."""

    schema: Schema
    encoders: TableSizes
    query: Columns
    item: Columns

    @staticmethod
    def of(schema: Schema, n_words: int) -> Words:
        """The first ``n_words`` rows, each a word."""
        words = Columns({WORD: np.arange(n_words)}, n_words)
        return Words(
            schema=schema,
            encoders=TableSizes(table_sizes={IN: n_words, OUT: n_words}),
            query=words,
            item=words,
        )


def run_of(arm: Arm, settings: Settings, *, seed: int = 0) -> Run:
    """The query tower is the table of word vectors: a word's own, or the mean over a window. The item tower is the
    table of output vectors. Neither is normalised; the former starts small, the latter at zero."""
    skip_gram = arm.architecture == "skip-gram"
    loss, negatives = _tree() if arm.hierarchical else _noise(arm.architecture, settings)
    return Run(
        schema=Schema(
            interactions=Interactions(item=WORD, query=WORD if skip_gram else None),
            query={WORD: Id(column=WORD, table=IN)} if skip_gram else {},
            context={} if skip_gram else {WINDOW: Categories(column=WINDOW, table=IN)},
            item={WORD: Id(column=WORD, table=OUT)},
        ),
        split=GivenSplit(valid=0.1),  # unused: all of the text is trained on
        towers=TwoTower(
            dim=settings.dim,
            normalise=False,
            tables={
                # the deviation of word2vec's uniform start on -1/2d .. 1/2d
                IN: TableSettings(deviation=1 / (settings.dim * math.sqrt(12))),
                OUT: TableSettings(init="zeros"),
            },
        ),
        negatives=negatives,
        loss=loss,
        training=Training(
            batch_size=arm.batch_size,
            epochs=settings.epochs,
            tables=RowwiseAdam(lr=arm.lr, beta1=0.0, beta2=0.999),
            schedule="linear",
            tile=PLACES // negatives.n,
            seed=seed,
        ),
    )


def _tree() -> tuple[Loss, Popularity]:
    """The tree needs no candidates, but a run has a sampler: one word a batch, which nothing looks at."""
    return HierarchicalSoftmax(), Popularity(1)


def _noise(architecture: Architecture, settings: Settings) -> tuple[Loss, Popularity]:
    """-log sigmoid(p) - sum of ``negative`` noise words' log sigmoid(-s), drawn in proportion to count ** 0.75.

    A CBOW query has one target and so its own noise words. A skip-gram query has a window of targets, window + 1 on
    average where no sentence ends (a radius r has 2r), which share as many noise words as word2vec draws for them:
    ``negative`` times the mean over the lot. ``negative`` words for the whole window would be unbiased too and take
    half the time, but each of them would then weigh window + 1 times: so uneven a noise costs quality (README.md).
    """
    if architecture == "cbow":
        return SGNS(), Popularity(settings.negative, alpha=0.75, per_query=True)
    shared = Popularity(settings.negative * (settings.window + 1), alpha=0.75, per_query=True)
    return BinaryCrossEntropy(negative_weight=settings.negative), shared


@dataclass(frozen=True, kw_only=True)
class WordVectors:
    """What a word2vec made."""

    vector_VD: NDArray[np.float32]
    seconds: float
    """Wall time of the epochs, drawing windows included."""


def train(corpus: Corpus, arm: Arm, settings: Settings, *, form: Subsampling = "code", seed: int = 0) -> WordVectors:
    """Word vectors of all words of the corpus, in its order."""
    run = run_of(arm, settings, seed=seed)
    batches = WindowBatches(
        corpus,
        architecture=arm.architecture,
        batch_size=arm.batch_size,
        window=settings.window,
        sample=settings.sample,
        form=form,
        seed=seed,
    )
    torch.manual_seed(seed)
    model = Model(run, Words.of(run.schema, len(corpus.word_V)), batches.facts())
    stepper, total = Stepper(model, run.training), settings.epochs * batches.steps_per_epoch
    started, step = time.perf_counter(), 0
    for epoch in range(settings.epochs):
        for batch in batches.epoch(epoch):
            stepper(batch, step, learning_rate(run.training, step, total))
            step += 1
    seconds = time.perf_counter() - started
    return WordVectors(vector_VD=word_vectors(model, arm.architecture), seconds=seconds)


@torch.no_grad()
def word_vectors(model: Model, architecture: Architecture) -> NDArray[np.float32]:
    """[V, D] what the query tower says of each word by itself."""
    word_V = torch.arange(model.store.item.n)
    alone = Ragged(offset=torch.arange(len(word_V) + 1), value=word_V)
    return model.towers.encode_query({WORD: word_V} if architecture == "skip-gram" else {WINDOW: alone}).numpy()
