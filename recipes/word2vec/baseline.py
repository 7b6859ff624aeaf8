"""The same settings in gensim, the word2vec most people run: compiled loops, plain stochastic gradient descent."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from gensim.models import Word2Vec

from recipes.word2vec.corpus import Corpus
from recipes.word2vec.model import Arm, Settings, WordVectors


def train_gensim(corpus: Corpus, arm: Arm, settings: Settings, *, threads: int, seed: int) -> WordVectors:
    """Word vectors of all words of the corpus, in its order. Every setting not named here is gensim's default: learning
    rate 0.025 down to 0.0001, noise to the power 0.75, the mean over a CBOW window."""
    model = Word2Vec(
        vector_size=settings.dim,
        window=settings.window,
        min_count=settings.min_count,
        sample=settings.sample,
        sg=int(arm.architecture == "skip-gram"),
        hs=int(arm.hierarchical),
        negative=0 if arm.hierarchical else settings.negative,
        workers=threads,
        seed=seed + 1,  # gensim's own default is 1
    )
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "sentences.txt"  # gensim is fastest from a file: its threads then need no interpreter
        write_sentences(corpus, text)
        model.build_vocab(corpus_file=str(text))
        started = time.perf_counter()
        model.train(
            corpus_file=str(text),
            total_examples=model.corpus_count,
            total_words=model.corpus_total_words,
            epochs=settings.epochs,
        )
        seconds = time.perf_counter() - started
    return WordVectors(vector_VD=np.stack([model.wv[word] for word in corpus.word_V]), seconds=seconds)


def write_sentences(corpus: Corpus, path: Path) -> None:
    """One sentence a line, words between blanks."""
    words = np.array(corpus.word_V, dtype=object)[corpus.token_T]
    starts = np.flatnonzero(np.diff(corpus.sentence_T)) + 1
    path.write_text("".join(" ".join(part) + "\n" for part in np.split(words, starts)), encoding="utf-8")
