"""Losses side by side: for each the same data, tower, epochs and number of trials of its settings.

    python -m benchmarks.losses gowalla | ml-1m | tldr | debian [--only mf.] [--seeds 3] [--jobs 1] [--set NAME=VALUE]
                                [--keep FOLDER]
    python -m benchmarks.losses gowalla --search FOLDER

How arms are searched, fitted and kept: benchmarks/arms.py. An arm is a loss with what belongs to it (negatives, kind of
batch).

gowalla, ml-1m   ``mf.LOSS`` and ``graph.LOSS``: matrix factorisation, and LightGCN over the same tables
tldr             fixed temperatures and margins against adaptive ones, with and without the symmetric term
debian           the three arms of the paper on mixed negatives (sampled softmax over ids, batch negatives, mixed), and
                 plain softmax, corrected softmax and mse-gramian as in that on sampling-bias correction
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.arms import Kind, main
from twotower.data.held_out import held_out
from twotower.evaluation import top_k
from twotower.training.retriever import Retriever, encode_questions

_LISTED = 10
"""Places of a list that are looked at for what they hold."""


def listed(retriever: Retriever, part_E: np.ndarray) -> dict[str, float]:
    """Which items are listed: the share with at most 50 training links, and with none at all."""
    questions = held_out(retriever.store, part_E, "test")
    query_QD = encode_questions(retriever.towers, questions)
    row_QL = top_k(query_QD, retriever.item_MD, _LISTED, exclude=questions.seen).row_Qk
    trained = (part_E == 0) | (part_E == 1)
    count_M = torch.from_numpy(np.bincount(retriever.store.item_row[trained], minlength=retriever.store.n_items))
    count_QL = count_M[row_QL]
    return {
        "tail_share": float((count_QL <= 50).float().mean()),
        "unlinked_share": float((count_QL == 0).float().mean()),
    }


LOSSES = Kind(
    name="losses",
    metrics={
        "gowalla": ("recall@20", "ndcg@20"),
        "ml-1m": ("recall@20", "ndcg@20"),
        "tldr": ("recall@1", "recall@10", "recall@100", "batch_recall@1", "batch_recall@5", "batch_recall@10"),
        "debian": (
            *("recall@10", "recall@100", "recall@100_head", "recall@100_tail", "recall@100_unseen", "tail_share"),
            "unlinked_share",
        ),
    },
    cut=("gowalla", "ml-1m"),
    further={"debian": listed},
    paired={},
)


if __name__ == "__main__":
    main(LOSSES, __doc__)
