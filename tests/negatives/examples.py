"""An example of every sampler there is: what the tests that hold for all go through."""

from __future__ import annotations

from twotower.negatives import (
    DNS,
    Catalogue,
    InBatch,
    MixGCF,
    Popularity,
    PositiveAware,
    Queue,
    RankWindow,
    Rotations,
    Sampler,
    Uniform,
)

EXAMPLES: dict[str, Sampler] = {
    "Catalogue": Catalogue(),
    "DNS": DNS(n=2, of=Uniform(8, per_query=True)),
    "DNS of the batch": DNS(of=InBatch()),
    "DNS among": DNS(n=2, among=4, of=InBatch() + Uniform(3) + Uniform(3, per_query=True)),
    "InBatch": InBatch(),
    "MixGCF": MixGCF(n=2, of=Uniform(6, per_query=True)),
    "Mixture": InBatch() + Uniform(10) + Popularity(10, per_query=True),
    "Popularity": Popularity(24),
    "Popularity per query": Popularity(24, per_query=True),
    "PositiveAware by margin": PositiveAware(margin=0.3, n=2, of=InBatch() + Uniform(6, per_query=True)),
    "PositiveAware by share": PositiveAware(share=0.95, of=Uniform(8)),
    "Queue": InBatch() + Queue(batches=3),
    "Queue alone": Queue(batches=2, warm_up=5),
    "RankWindow": RankWindow(2, first=2, last=5),
    "RankWindow and easy ones": InBatch() + Uniform(7, per_query=True) + RankWindow(first=3, last=20),
    "Rotations": Rotations(14),
    "Uniform": Uniform(24),
    "Uniform per query": Uniform(24, per_query=True),
}
