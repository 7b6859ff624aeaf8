"""word2vec as a two-tower run, beside gensim with equal settings, epochs and threads.

    python -m recipes.word2vec                        # all four arms
    python -m recipes.word2vec --arm sg-ns --seeds 3

Vectors of both are scored alike: WordSim-353 and SimLex-999 by rank correlation, Google's analogies by accuracy, all
over the questions whose words the vocabulary has. There is no part of them to tune on: README.md lists every setting
that was tried.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from benchmarks.data import data_folder
from benchmarks.harness import report, show
from numpy.typing import NDArray

from recipes.word2vec.baseline import train_gensim
from recipes.word2vec.corpus import Corpus, Subsampling, read_sentences
from recipes.word2vec.model import ARMS, Settings, WordVectors, train
from recipes.word2vec.similarity import analogies, covered, read_analogies, read_rated_pairs, similarity

FILES = ("corpus.txt.gz", "wordsim353.tsv", "simlex999.txt", "questions-words.txt")


class Judge:
    """The three tests over the words of one corpus: questions with a word that is too rare are left out."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.row_of = {word: row for row, word in enumerate(corpus.word_V)}
        wordsim = read_rated_pairs(folder / "wordsim353.tsv")
        simlex = read_rated_pairs(folder / "simlex999.txt")
        questions = read_analogies(folder / "questions-words.txt")
        self.wordsim = covered(wordsim, self.row_of)
        self.simlex = covered(simlex, self.row_of)
        self.questions = covered(questions, self.row_of)
        self.covered = {
            "wordsim": len(self.wordsim) / len(wordsim),
            "simlex": len(self.simlex) / len(simlex),
            "analogies": len(self.questions) / len(questions),
        }

    def scores(self, vector_VD: NDArray[np.float32]) -> dict[str, float]:
        """By name of the test."""
        return {
            "wordsim": similarity(vector_VD, self.row_of, self.wordsim),
            "simlex": similarity(vector_VD, self.row_of, self.simlex),
            "analogies": analogies(vector_VD, self.row_of, self.questions),
        }


def words_folder() -> Path:
    """Where the corpus and the tests lie. Exits where they don't."""
    folder = data_folder() / "words"
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise SystemExit(f"words: {missing} are not in {folder}; set TWOTOWER_DATA to the folder that holds words/")
    return folder


def measure(arms: list[str], settings: Settings, seeds: int, form: Subsampling = "code") -> None:
    """Train both on every arm and seed; print the means over the seeds."""
    started, threads = time.perf_counter(), torch.get_num_threads()
    folder = words_folder()
    corpus = Corpus.of(read_sentences(folder / "corpus.txt.gz"), min_count=settings.min_count)
    judge = Judge(folder, corpus)
    print(f"{len(corpus.token_T):,} tokens of {len(corpus.word_V):,} words, {threads} threads", flush=True)
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for name in arms:
        arm = ARMS[name]
        contestants: dict[str, Callable[[int], WordVectors]] = {
            "ours": lambda seed, arm=arm: train(corpus, arm, settings, form=form, seed=seed),
            "gensim": lambda seed, arm=arm: train_gensim(corpus, arm, settings, threads=threads, seed=seed),
        }
        metrics[name] = {
            who: _mean_over([_figures(judge, corpus, settings, contestant(seed)) for seed in range(seeds)])
            for who, contestant in contestants.items()
        }
        columns = list(metrics[name]["ours"])
        show(name, ["", *columns], [[who, *figures.values()] for who, figures in metrics[name].items()])
    print("\nshare of questions covered: " + ", ".join(f"{test} {share:.3f}" for test, share in judge.covered.items()))
    report(
        "word2vec",
        {**metrics, "covered": judge.covered},
        seconds=time.perf_counter() - started,
        seed=0,
        settings={
            **asdict(settings),
            "subsampling": form,
            "seeds": seeds,
            "arms": {name: asdict(ARMS[name]) for name in arms},
        },
    )


def _figures(judge: Judge, corpus: Corpus, settings: Settings, made: WordVectors) -> dict[str, float]:
    return judge.scores(made.vector_VD) | {"words_per_s": settings.epochs * len(corpus.token_T) / made.seconds}


def _mean_over(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([seed[name] for seed in figures])) for name in figures[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", choices=tuple(ARMS), help="only this arm; may be given again")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0")
    parser.add_argument(
        "--subsampling", choices=get_args(Subsampling), default="code", help="form of ours; gensim has that of the code"
    )
    arguments = parser.parse_args()
    measure(arguments.arm or list(ARMS), Settings(epochs=arguments.epochs), arguments.seeds, arguments.subsampling)


if __name__ == "__main__":
    main()
