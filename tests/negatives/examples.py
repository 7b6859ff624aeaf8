"""An example of every sampler there is: what the tests that hold for all go through."""

from __future__ import annotations

from twotower.negatives import DNS, Catalogue, Impressions, InBatch, MixGCF, Popularity, Rotations, Sampler, Uniform

EXAMPLES: dict[str, Sampler] = {
    "Catalogue": Catalogue(),
    "DNS": DNS(n=2, of=Uniform(8, per_query=True)),
    "DNS of the batch": DNS(of=InBatch()),
    "DNS among": DNS(n=2, among=4, of=InBatch() + Uniform(3) + Uniform(3, per_query=True)),
    "Impressions": Impressions(3),
    "Impressions thinned, by times": Impressions(3, alpha=1.0, thin=0.05),
    "Impressions, reliable": Impressions(3, reliable=0.5),
    "InBatch": InBatch(),
    "MixGCF": MixGCF(n=2, of=Uniform(6, per_query=True)),
    "Mixture": InBatch() + Uniform(10) + Popularity(10, per_query=True),
    "Popularity": Popularity(24),
    "Popularity per query": Popularity(24, per_query=True),
    "Rotations": Rotations(14),
    "Uniform": Uniform(24),
    "Uniform per query": Uniform(24, per_query=True),
}
