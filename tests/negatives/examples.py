"""An example of every sampler there is: what the tests that hold for all go through."""

from __future__ import annotations

from twotower.negatives import (
    DNS,
    MCNS,
    AdaptiveImportance,
    Catalogue,
    Gibbs,
    InBatch,
    MetropolisHastings,
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
    "AdaptiveImportance": AdaptiveImportance(ess=4.0, block=4, cap=16, bits=2, temperature=1.0),
    "AdaptiveImportance of a peaked law": AdaptiveImportance(ess=8.0, block=4, cap=8, temperature=0.1),
    "Catalogue": Catalogue(),
    "DNS": DNS(n=2, of=Uniform(8, per_query=True)),
    "DNS of the batch": DNS(of=InBatch()),
    "DNS among": DNS(n=2, among=4, of=InBatch() + Uniform(3) + Uniform(3, per_query=True)),
    "Gibbs": Gibbs(5, temperature=1.0),
    "InBatch": InBatch(),
    "MCNS": MCNS(5, steps=3, burn_in=4, neighbours=4, temperature=1.0),
    "MetropolisHastings": MetropolisHastings(5, steps=3, burn_in=4, of=Uniform(4, per_query=True)),
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
