"""One query alone, which goes a shorter way, finds what it finds among others."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.index import HNSW, IVFPQ, IVFSQ8, Index, IndexSettings

pytest.importorskip("faiss")

D, N = 8, 2_000


@pytest.mark.parametrize(
    "settings", [IVFSQ8(nlist=16, nprobe=16, k_factor=3), IVFPQ(nlist=16, nprobe=16, k_factor=20), HNSW(ef_search=400)]
)
@pytest.mark.parametrize("live", ["all", "some", "changed"])
def test_one_query_is_as_two(settings: IndexSettings, live: str) -> None:
    generator = np.random.default_rng(0)
    vector_MD = generator.normal(size=(N, D)).astype(np.float32)
    vector_MD[100:110] = vector_MD[100]  # equal scores
    live_M = generator.random(N) < 0.9 if live == "some" else None
    index = Index.build(vector_MD, settings, live_M=live_M)
    if live == "changed":
        index.delete(np.arange(0, N, 25))
        rows = np.concatenate([np.arange(7, N, 40), N + np.arange(30)])
        index.upsert(rows, generator.normal(size=(len(rows), D)).astype(np.float32))
    for number in range(30):
        query_1D = generator.normal(size=(1, D)).astype(np.float32)
        if number == 0:
            query_1D = vector_MD[100:101]
        alone, exact = index.search(query_1D, 20), index.search(query_1D, 20, exact=True)
        np.testing.assert_allclose(alone.score_Bk, exact.score_Bk, rtol=1e-5, atol=1e-5)
        together = index.search(np.repeat(query_1D, 2, axis=0), 20)
        np.testing.assert_array_equal(alone.row_Bk[0], together.row_Bk[0])
    assert (index.search(query_1D, N + 100).row_Bk >= 0).sum() == index.n
