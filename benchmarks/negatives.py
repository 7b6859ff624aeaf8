"""Samplers of negatives side by side: the same tower, loss, budget and number of trials for each.

    python -m benchmarks.negatives lastfm | ml-100k | kuairand [--only dns] [--seeds 3] [--jobs 1] [--set NAME=VALUE]
                                   [--keep FOLDER]
    python -m benchmarks.negatives lastfm --search FOLDER

How arms are searched, fitted and kept: benchmarks/arms.py. An arm is a sampler; its learning rate, its own settings
and its number of epochs are chosen on validation.

lastfm     LightGCN and BPR on the split of the published ladder of miners
ml-100k    matrix factorisation and BPR on IRGAN's split
kuairand   which impressions to learn from: random items, what was shown and not clicked, both
"""

from __future__ import annotations

from benchmarks.arms import Kind, main

NEGATIVES = Kind(
    name="negatives",
    metrics={
        "lastfm": ("recall@20", "ndcg@20"),
        "ml-100k": ("recall@20", "ndcg@20", "recall@5", "ndcg@5"),
        "kuairand": ("recall@50", "recall@20", "recall@100", "ndcg@50"),
    },
    cut=("lastfm", "ml-100k"),
    further={},
    paired={
        "kuairand": (
            ("random", "exposed"),
            ("mixture", "random"),
            ("mixture", "mixture-unthinned"),
        )
    },
)


if __name__ == "__main__":
    main(NEGATIVES, __doc__)
