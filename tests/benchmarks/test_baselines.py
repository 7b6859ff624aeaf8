"""The TF-IDF baselines against naive loops in float64."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

sparse = pytest.importorskip("scipy.sparse", reason="the baselines need scipy (extra: dev)")
pytest.importorskip("sklearn", reason="the baselines need scikit-learn (extra: dev)")

from benchmarks.baselines import package_texts, tfidf_match, tfidf_vote  # noqa: E402

WORDS = [f"w{n}" for n in range(40)]
N_ITEMS = 25


def _vectors(train: list[str], texts: list[str]) -> list[dict[str, float]]:
    df = Counter(word for text in train for word in set(text.split()))
    vectors = []
    for text in texts:
        tf = Counter(word for word in text.split() if word in df)
        vector = {w: (1 + math.log(n)) * (math.log((1 + len(train)) / (1 + df[w])) + 1) for w, n in tf.items()}
        length = math.sqrt(sum(x * x for x in vector.values())) or 1.0
        vectors.append({w: x / length for w, x in vector.items()})
    return vectors


def _naive_vote(train: list[str], targets: list[list[int]], test: list[str], neighbours: int) -> np.ndarray:
    scores = np.zeros((len(test), N_ITEMS))
    train_vectors = _vectors(train, train)
    for n, query in enumerate(_vectors(train, test)):
        cosine = [sum(x * other.get(w, 0.0) for w, x in query.items()) for other in train_vectors]
        nearest = sorted(range(len(train)), key=lambda t: (-cosine[t], t))[:neighbours]
        for t in nearest:
            for item in targets[t]:
                scores[n, item] += cosine[t]
    return scores


def _csr(targets: list[list[int]]) -> sparse.csr_matrix:
    dense = np.zeros((len(targets), N_ITEMS))
    for n, items in enumerate(targets):
        dense[n, items] = 1
    return sparse.csr_matrix(dense)


@pytest.mark.parametrize("neighbours", [1, 7, 30, 200])
def test_agrees_with_a_naive_loop(neighbours: int) -> None:
    rng = random.Random(3)
    train = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(120)]
    targets = [rng.sample(range(N_ITEMS), rng.randint(1, 5)) for _ in train]
    test = [" ".join(rng.choices([*WORDS, "unknown"], k=rng.randint(1, 9))) for _ in range(40)]
    scores = tfidf_vote(train, _csr(targets), test, N_ITEMS, neighbours)
    assert scores.shape == (40, N_ITEMS)
    np.testing.assert_allclose(scores.toarray(), _naive_vote(train, targets, test, neighbours), atol=1e-5)


def test_of_equal_neighbours_the_first_vote() -> None:
    scores = tfidf_vote(["a b", "a b", "a b"], _csr([[4], [2], [3]]), ["a b"], N_ITEMS, neighbours=2)
    assert sorted(scores.indices.tolist()) == [2, 4]
    np.testing.assert_allclose(scores.data, [1.0, 1.0], rtol=1e-6)


def test_nothing_in_common_is_no_vote() -> None:
    assert tfidf_vote(["a", "b"], _csr([[0], [1]]), ["c", ""], N_ITEMS).nnz == 0


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"train_targets is \(2, 25\), expected \(1, 25\)"):
        tfidf_vote(["a"], _csr([[0], [1]]), ["a"], N_ITEMS)
    with pytest.raises(ValueError, match="neighbours is 0"):
        tfidf_vote(["a"], _csr([[0]]), ["a"], N_ITEMS, neighbours=0)


def test_tokens_of_a_package() -> None:
    packages = pa.table(
        {
            "package": ["libfoo2-python3", "bar"],
            "section": ["libs", None],
            "description": ["Foo's Python binding", None],
            "tags": pa.array([["role::shared-lib"], None], pa.list_(pa.string())),
        }
    )
    foo, bar = (text.split() for text in package_texts(packages))
    assert sorted(foo) == sorted(
        [
            "foo",
            "s",
            "python",
            "binding",
            "libfoo2",
            "python3",
            "stem=libfoo",
            "stem=python",
            "section=libs",
            "tag=role::shared-lib",
        ]
    )
    assert bar == ["bar", "stem=bar"]


def test_match_equals_naive_loop() -> None:
    rng = random.Random(5)
    items = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(N_ITEMS)]
    queries = [*(" ".join(rng.choices(WORDS, k=4)) for _ in range(9)), "strange words", ""]
    expected = [
        [sum(x * item.get(w, 0.0) for w, x in query.items()) for item in _vectors(items, items)]
        for query in _vectors(items, queries)
    ]
    found = tfidf_match([text.replace(" ", ", ").upper() for text in items], queries).toarray()
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-6)
