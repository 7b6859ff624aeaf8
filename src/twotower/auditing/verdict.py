"""What the numbers of an audit mean, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .cost import Cost
from .gradient import Gradient
from .law import DecileLaw, Law
from .offers import Offers

SURE = 0.01
"""Probability below which counts and draws are said to differ."""
NOTABLY_OFF = 0.1
"""Difference of an estimated count, bias of a gradient, from which something should be done."""
UNEVEN = 2.0
"""Times uniform from which a decile is said to be favoured."""
HELPS = 0.9
"""Share of a bias that more candidates leave, below which they are said to help."""
MANY_EXCLUDED, MANY_REPEATED, DEAR = 0.2, 0.3, 0.3
"""Shares from which they are spoken of."""


def verdict(law: Law, offers: Offers, gradient: Gradient, cost: Cost, correction: str | None) -> tuple[str, ...]:
    """A few sentences. ``correction`` is the loss's, None where it has none."""
    corrected = correction not in (None, "none")
    lines = [
        *_of_law(law),
        *_of_popularity(law, corrected),
        *_of_offers(offers),
        *_of_gradient(gradient, law),
    ]
    if cost.sampler_share > DEAR:
        lines.append(
            f"Drawing and counting take {cost.sampler_share:.0%} of a step: candidates shared by the batch, or fewer, "
            "are cheaper."
        )
    return tuple(lines)


def _of_law(law: Law) -> Iterator[str]:
    if law.density == "none":
        yield (
            "This sampler has no density: nothing to hold draws against, and nothing to correct a loss with. Compare "
            "it with another on validation data."
        )
    elif law.density == "approximate":
        yield _of_estimates(law)
    elif law.p >= SURE:
        scale = " up to a factor" if law.density == "relative" else ""
        yield (
            f"Counts agree with the draws{scale}: no decile and no item is further off than chance has it "
            f"(p = {law.p:.2g})."
        )
    elif law.density == "relative":
        yield (
            f"The draws are not of the claimed law (p = {law.p:.2g}): item {law.worst[0].id} is offered "
            f"{_times(law.worst[0].count.ratio)} what is claimed. Chains this short have not forgotten where they "
            "started: raise steps, or burn_in, until this agrees. A loss without correction only gets other negatives "
            "for it."
        )
    else:
        yield (
            f"COUNTS DO NOT AGREE with the draws (p = {law.p:.2g}): {' and '.join(_off(law))} what is claimed. A "
            "corrected loss would be wrong by that: mend draw or log_count before training."
        )
    if law.carried_over > 1.5:
        yield (
            f"Candidates carry over from batch to batch: their variance is {law.carried_over:.1f} times that of "
            "independent batches, and intervals are wider by that."
        )


def _off(law: Law) -> Iterator[str]:
    """What is off for sure, the furthest of each kind."""
    worst, decile = law.worst[0], max(law.deciles, key=lambda decile: abs(decile.count.z))
    if law.p_items < SURE:
        yield f"item {worst.id} is offered {_times(worst.count.ratio)}"
    if law.p_deciles < SURE:
        yield f"decile {decile.number} is offered {_times(decile.count.ratio)}"


def _of_estimates(law: Law) -> str:
    """How good approximate counts are, where enough was drawn to tell."""
    told = [d for d in law.deciles if d.count.claimed > 0 and d.count.high - d.count.low < 1]
    if not told:
        return "Counts are approximate, and too little was drawn to tell how good they are: raise --batches."
    low, high = min(d.count.ratio for d in told), max(d.count.ratio for d in told)
    off = [d for d in told if d.count.low > 1 + NOTABLY_OFF or d.count.high < 1 - NOTABLY_OFF]
    said = f"Counts are approximate: by decile {low:.3f} to {high:.3f} times the claim was found"
    if not off:
        return f"{said}; none is off by {NOTABLY_OFF:.0%} for sure."
    worst = max(off, key=lambda decile: abs(math.log(max(decile.count.ratio, 1e-9))))
    return (
        f"{said}. Decile {worst.number} is off for sure ({worst.count.low:.3g} to {worst.count.high:.3g}): "
        f"corrected, its items weigh {_times(worst.count.ratio)} what they should. Better counts come from "
        "ExactFrequency, or from a longer burn_in of a streaming one."
    )


def _of_popularity(law: Law, corrected: bool) -> Iterator[str]:
    drawn = [decile for decile in law.deciles if decile.share_of_candidates > 0]
    if not drawn:
        return
    top = max(drawn, key=_times_uniform)
    if _times_uniform(top) < UNEVEN:
        return
    by_data = f", {_times(top.share_of_candidates / top.share_of_events)} its share of training events" * (
        top.share_of_events > 0
    )
    what = (
        "the correction makes up for that"
        if corrected
        else "without correction its items are held down in the scores for it"
        + ("; correction = 'negatives' lifts that" if law.density in ("exact", "approximate") else "")
    )
    yield (
        f"Decile {top.number} has {top.share_of_candidates:.0%} of the candidates, {_times(_times_uniform(top))} what "
        f"uniform draws would give it{by_data}: {what}."
    )
    without = [d for d in law.deciles if d.share_of_candidates == 0 and not d.count.claimed > 0]
    never, labels = sum(d.items for d in without), ", ".join(str(d.number) for d in without)
    if never:
        yield (f"{never:,} items (decile {labels}) are never negatives, so nothing pushes them down: add Uniform(n).")


def _of_offers(offers: Offers) -> Iterator[str]:
    if offers.excluded > MANY_EXCLUDED:
        yield (
            f"{offers.excluded:.0%} of the candidates are excluded, for the query is known to like them, or they are "
            "not live at its time: so much is drawn for nothing, add Uniform negatives or take fewer of popular ones."
        )
    if offers.without_candidate > 0:
        yield (
            f"{offers.without_candidate:.1%} of the positives have no candidate left and teach nothing: draw more, or "
            "from more items."
        )
    if offers.merged > MANY_REPEATED:
        yield (
            f"{offers.merged:.0%} of the shared places repeat an item and are merged: that costs nothing in the loss, "
            f"but {offers.distinct:,.0f} different candidates are what a query learns from."
        )
    if offers.repeated > MANY_REPEATED:
        yield (
            f"{offers.repeated:.0%} of the places of a query's own repeat one of its own: fewer would teach as much."
        )


def _of_gradient(gradient: Gradient, law: Law) -> Iterator[str]:
    now, most = gradient.at(1.0), gradient.estimates[-1]
    has_more = most.places > 1.2 * now.places
    many = f", at {most.places:,.0f} candidates {most.bias:.3f}" if has_more else ""
    mean = "The mean gradient of a softmax in the loss's place" if gradient.in_place else "The mean gradient"
    if now.bias_low > NOTABLY_OFF:
        way_out = _less_bias(gradient, law, helps=not has_more or most.bias < HELPS * now.bias)
        yield f"{mean} is {now.bias:.0%} of the full softmax's away from it (cosine {now.cosine:.2f}){many}: {way_out}."
    else:
        yield f"{mean} is close to the full softmax's: bias {now.bias:.3f}, cosine {now.cosine:.3f}{many}."
    if now.noise > 1:
        yield (
            f"One batch's gradient strays by {now.noise:.2g} times the full one's length: candidates from a law nearer "
            "to the model's scores, or more of them, make it steadier."
        )


def _less_bias(gradient: Gradient, law: Law, *, helps: bool) -> str:
    """What to do about a biased gradient. ``helps``: whether more candidates lower it."""
    if law.density in ("none", "relative"):
        return "a choice without a density is another objective, which validation has to judge"
    if gradient.correction == "none":
        return "correction = 'negatives' is what lowers it"
    if gradient.correction == "all":
        return "correction = 'negatives' goes to the full softmax's as candidates grow, 'all' need not"
    if not helps:
        return (
            "more of the same hardly lowers it, so mix in Uniform(n) for what these leave out, or take a larger batch"
        )
    return "more candidates lower it"


def _times_uniform(decile: DecileLaw) -> float:
    return decile.share_of_candidates / decile.share_of_items


def _times(ratio: float) -> str:
    return "other than" if math.isnan(ratio) else f"{ratio:.3g} times"
