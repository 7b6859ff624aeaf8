"""Baselines that need no training, for the tables of the benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

_CHUNK = 512
"""Queries compared with all training texts at once: 512 by 50,000 float32 similarities are 100 MB."""


def package_texts(packages: pa.Table) -> list[str]:
    """One text a package: its tokens, separated by blanks, for a vectorizer that splits at blanks.

    Tokens are the words of the name and of the description, alike: a name may say what a description is about; the
    words of the name once more without digits at their ends, marked (``python3`` is also ``stem=python``); the section;
    the tags. Of eight ways to mark tokens this was the best on the demo data's validation split (R@10, R@100, tail).

    ``packages`` has the columns package, section, description and tags of the demo data.
    """
    rows = packages.select(["package", "section", "description", "tags"]).to_pylist()
    return [" ".join(_package_tokens(row["package"], row["section"], row["description"], row["tags"])) for row in rows]


def _package_tokens(name: str, section: str | None, description: str | None, tags: Sequence[str] | None) -> list[str]:
    name_words = re.findall(r"[a-z0-9]+", name.lower())
    without_digits = [word.strip("0123456789") for word in name_words]
    return [
        *re.findall(r"\w+", (description or "").lower()),
        *name_words,
        *(f"stem={word}" for word in without_digits if word),
        *([f"section={section}"] if section else []),
        *(f"tag={tag}" for tag in tags or ()),
    ]


def tfidf_vote(
    train_texts: Sequence[str],
    train_targets: sparse.csr_matrix,
    test_texts: Sequence[str],
    n_items: int,
    neighbours: int = 30,
) -> sparse.csr_matrix:
    """Scores of items for held-out queries: the most similar training queries vote for what they link to.

        score(query, item) = Σ_t cos(query, t) · [t links to item],  t the `neighbours` most similar training queries

    cos is between TF-IDF vectors of the texts, split at blanks: ``(1 + ln tf) · (ln((1 + n) / (1 + df)) + 1)`` at unit
    length, vocabulary and df from the training texts. (1 + ln tf beats tf on the demo data's validation split.)
    Of equally similar neighbours the earlier ones vote. A training query with nothing in common (cos 0) has no vote.

    ``train_targets`` [n_train, n_items] has a 1 for every link. Returned [n_test, n_items] float32; what got no vote is
    not stored and ranks last. A query's own item is not masked here: the evaluation masks it for every model alike.

    Raises ``ValueError`` if the shapes disagree or ``neighbours`` is below 1.

    Source: Dudani 1976 (nearest neighbours that vote with a weight), Salton & Buckley 1988 (TF-IDF, cosine).
    """
    if train_targets.shape != (len(train_texts), n_items):
        raise ValueError(
            f"train_targets is {train_targets.shape}, expected {(len(train_texts), n_items)}: train_texts by n_items"
        )
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}, expected at least 1")
    vectorizer = TfidfVectorizer(analyzer=str.split, sublinear_tf=True, dtype=np.float32)
    train = vectorizer.fit_transform(train_texts).T.tocsr()
    test = vectorizer.transform(test_texts)
    votes = [_nearest(test[start : start + _CHUNK] @ train, neighbours) for start in range(0, test.shape[0], _CHUNK)]
    return (sparse.vstack(votes, format="csr") @ train_targets.astype(np.float32)).tocsr()


def _nearest(similarity: sparse.csr_matrix, neighbours: int) -> sparse.csr_matrix:
    """The ``neighbours`` largest entries of each row, of equal ones those in the first columns."""
    similarity.sort_indices()
    kept: list[np.ndarray] = []
    sizes = [0]
    for start, stop in zip(similarity.indptr[:-1], similarity.indptr[1:], strict=True):
        value = similarity.data[start:stop]
        if value.size > neighbours:
            threshold = np.partition(value, -neighbours)[-neighbours]
            candidate = np.flatnonzero(value >= threshold)
            candidate = candidate[np.argsort(-value[candidate], kind="stable")[:neighbours]]
        else:
            candidate = np.arange(value.size)
        kept.append(start + np.sort(candidate))
        sizes.append(candidate.size)
    position = np.concatenate(kept)
    return sparse.csr_matrix(
        (similarity.data[position], similarity.indices[position], np.cumsum(sizes)), shape=similarity.shape
    )


def tfidf_match(item_texts: Sequence[str], query_texts: Sequence[str]) -> sparse.csr_matrix:
    """Scores of items for queries by the words they share: cos of the TF-IDF vectors of both texts.

    Words are lower-case runs of letters, digits and underscores, weighted as in ``tfidf_vote``; vocabulary and df from
    the items. Returned [n_queries, n_items] float32; an item without a word of the query is not stored and ranks last.

    Source: Salton & Buckley 1988 (TF-IDF, cosine).
    """
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True, dtype=np.float32)
    items = vectorizer.fit_transform(item_texts)
    return (vectorizer.transform(query_texts) @ items.T).tocsr()
