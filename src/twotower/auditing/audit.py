"""The audit of a run, from data to verdict."""

from __future__ import annotations

import time
from pathlib import Path

from ..config import Run
from ..errors import ConfigError
from ..losses import Loss, RowLoss
from ..training.loop import settings_of
from .cost import CostTally
from .gradient import gradient_of, name_of
from .law import LawTally
from .offers import OffersTally
from .report import Audit
from .subject import subject_of, walk
from .verdict import verdict


def audit(
    run: Run,
    *,
    model: str | Path | None = None,
    batches: int = 100,
    queries: int = 32,
    seed: int = 0,
    quiet: bool = False,
) -> Audit:
    """Look at what a run's sampler offers, before choosing it: counts, candidates, gradient, cost.

    Towers are at their start, or those of the trained ``model``, a folder that ``train`` wrote; of that what has the
    run's settings (sampler, loss, frequency) is taken with what it learnt. Ingests the data first where the store is
    not there. Draws of ``batches`` training batches are held against the counts, and half as many draws for each of
    ``queries`` queries against the full softmax. Nothing is trained.

    Memory is a few numbers an item, beside the vectors of the catalogue. Raises ConfigError, DataError or ArtifactError
    for what can't be audited.
    """
    for name, value, least in (("batches", batches, 4), ("queries", queries, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"audit: {name} is {value}, expected at least {least}")
    started = time.perf_counter()
    with settings_of(run.training):
        subject = subject_of(run, None if model is None else Path(model), seed=seed, quiet=quiet)
        law, offers, cost = LawTally(subject, batches, seed), OffersTally(), CostTally()
        for step in walk(subject, batches, seed):
            law.add(step)
            offers.add(step)
            cost.add(step)
        gradient = gradient_of(subject, n_queries=queries, n_draws=max(batches // 2, 2), seed=seed)
    of_law, of_offers, of_cost = law.result(), offers.result(), cost.result()
    correction = getattr(subject.model.loss, "correction", None)
    training = subject.run.training
    return Audit(
        sampler=name_of(subject.model.negatives),
        loss=_in_words(subject.model.loss),
        correction=correction,
        towers="at their start" if model is None else f"trained, of {model}",
        n_items=subject.store.n_items,
        n_batched=subject.batches.n_batched,
        batch_of=training.batch_of,
        batch_size=subject.facts.batch_size,
        seed=seed,
        notes=subject.notes,
        verdict=verdict(of_law, of_offers, gradient, of_cost, correction),
        law=of_law,
        offers=of_offers,
        gradient=gradient,
        cost=of_cost,
        seconds=time.perf_counter() - started,
    )


def _in_words(loss: Loss) -> str:
    name = type(loss).__name__
    if not isinstance(loss, RowLoss):
        return name
    temperature = float(loss.current_temperature())
    return f"{name}(temperature={temperature:.4g}, correction={loss.correction!r}, exclude={loss.exclude!r})"
