"""An example of every sampler there is: what the tests that hold for all go through."""

from __future__ import annotations

from twotower.negatives import (
    DNS,
    Catalogue,
    Conditional,
    InBatch,
    LogPopularity,
    LogUniform,
    Popularity,
    Rejection,
    Rotations,
    Sampler,
    TwoBucket,
    Uniform,
    Unknown,
)

EXAMPLES: dict[str, Sampler] = {
    "Catalogue": Catalogue(),
    "Conditional": Conditional(24, by="country"),
    "Conditional in a mixture": InBatch() + Conditional(8, by="country"),
    "DNS": DNS(n=2, of=Uniform(8, per_query=True)),
    "DNS of the batch": DNS(of=InBatch()),
    "DNS among": DNS(n=2, among=4, of=InBatch() + Uniform(3) + Uniform(3, per_query=True)),
    "InBatch": InBatch(),
    "LogPopularity": LogPopularity(24),
    "LogUniform": LogUniform(24),
    "LogUniform unique": LogUniform(6, unique=True),
    "Mixture": InBatch() + Uniform(10) + Popularity(10, per_query=True),
    "Popularity": Popularity(24),
    "Popularity per query": Popularity(24, per_query=True),
    "Rejection": Rejection(of=Uniform(4), target=Popularity(24)),
    "Rotations": Rotations(14),
    "TwoBucket": TwoBucket(24, threshold=100.0),
    "Uniform": Uniform(24),
    "Uniform per query": Uniform(24, per_query=True),
    "Uniform per query unique": Uniform(6, per_query=True, unique=True),
    "Unknown": Unknown(of=Popularity(24)),
}
