"""An example of every sampler there is: what the tests that hold for all go through."""

from __future__ import annotations

from twotower.negatives import (
    AHNS,
    AOBPR,
    BNS,
    DNS,
    SIR,
    SRNS,
    Catalogue,
    FirstViolation,
    InBatch,
    Popularity,
    Rotations,
    Sampler,
    SoftmaxDNS,
    Uniform,
)

EXAMPLES: dict[str, Sampler] = {
    "AHNS": AHNS(n=2),
    "AOBPR": AOBPR(8, scale=4.0),
    "BNS": BNS(n=2, of=Catalogue()),
    "Catalogue": Catalogue(),
    "DNS": DNS(n=2, of=Uniform(8, per_query=True)),
    "DNS of the batch": DNS(of=InBatch()),
    "DNS among": DNS(n=2, among=4, of=InBatch() + Uniform(3) + Uniform(3, per_query=True)),
    "FirstViolation": FirstViolation(),
    "FirstViolation as LightFM": FirstViolation(weight="log_rank", margin=1.0, of=Uniform(6)),
    "InBatch": InBatch(),
    "Mixture": InBatch() + Uniform(10) + Popularity(10, per_query=True),
    "Popularity": Popularity(24),
    "Popularity per query": Popularity(24, per_query=True),
    "Rotations": Rotations(14),
    "SIR": SIR(n=5, of=Popularity(24, per_query=True)),
    "SIR without replacement": SIR(n=5, of=InBatch() + Uniform(6), replacement=False, temperature=0.5),
    "SRNS": SRNS(n=2, pool=10, memory=4, fresh=3, turnover=1),
    "SRNS of the catalogue": SRNS(),
    "SoftmaxDNS": SoftmaxDNS(rho=0.5),
    "Uniform": Uniform(24),
    "Uniform per query": Uniform(24, per_query=True),
}
