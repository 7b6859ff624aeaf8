"""How far the gradient of sampled candidates is from that of the full softmax: on average, and from batch to batch."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..losses import RowLoss, SampledSoftmax, Symmetric
from ..negatives import Catalogue, Mixture, Sampler, propose
from ..records import Batch, Block, Candidates
from ..scoring import encode, tile_for
from ..training.step import to_device
from .subject import Subject

SCALES = (0.25, 1.0, 4.0)
"""Of the sampler's numbers."""
ITEMS_AT_A_TIME = 4096
MOST_OF_BATCH = 32
"""At most one in so many of a batch's rows is a query of the sample."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The gradient with respect to the vectors of the sample's queries, at one number of candidates.

    With g_r that of draw r and G that of the full softmax, both over all queries of the sample:

        bias^2   mean over r != s of <g_r - G, g_s - G> / |G|^2: what is left however many draws are averaged; noise
                 is in no pair of different draws, so it is not taken for bias
        noise    standard deviation of one g_r / |G|
        cosine   of E g with G, likewise from pairs of draws
    """

    scale: float
    sampler: str
    places: float
    """Candidates of a query, mean."""
    bias: float
    bias_low: float
    bias_high: float
    """Of an interval that holds the bias with 95% (jackknife over the draws)."""
    noise_floor: float
    """noise / sqrt(draws): what the plain mean of the draws would be off by without any bias."""
    noise: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Bias and noise at several numbers of candidates."""

    estimates: tuple[Estimate, ...]
    loss: str
    """In words."""
    correction: str
    """Of the softmax it is measured by."""
    in_place: bool
    """Whether that stands in for another loss."""
    n_queries: int
    n_draws: int
    notes: tuple[str, ...]

    def at(self, scale: float) -> Estimate:
        """The estimate at a scale; that of the sampler as it is where it cannot be scaled."""
        return next((e for e in self.estimates if e.scale == scale), self.estimates[-1])


class _Frozen:
    """A model that stands still (``negatives.Look``): item vectors are encoded once, query vectors where asked for."""

    def __init__(self, subject: Subject, item_MD: Tensor) -> None:
        self.subject, self.item_MD, self.step = subject, item_MD, 1
        self.batch: Batch | None = None

    @property
    def query_BD(self) -> Tensor:
        assert self.batch is not None
        with torch.no_grad():
            return self.subject.model.towers.encode_query(self.batch.query)

    def items(self, row: Tensor) -> Tensor:
        return self.item_MD[row]

    def layers(self, row: Tensor) -> Tensor:
        distinct, at = row.flatten().unique(return_inverse=True)
        with torch.no_grad():
            vectors = self.subject.model.item_layers(distinct)
        return vectors.index_select(0, at).view(*row.shape, *vectors.shape[1:])

    def log_presence(self, row: Tensor) -> Tensor:
        return self.subject.model.frequency.log_presence(row)


def gradient_of(subject: Subject, *, n_queries: int, n_draws: int, seed: int) -> Gradient:
    """Compare with the full softmax of the same temperature and exclusions.

    The sample's queries stand still, and so do all vectors (as training has them, without dropout). A draw is made for
    a batch of some of them, at most one row in ``MOST_OF_BATCH`` or one, and of others that change from draw to draw;
    as the batch's own items are offered those of the others.
    """
    model = subject.model
    model.eval()
    loss, what = _softmax_of(subject)
    item_MD = _catalogue(subject)
    sample = _Sample(subject, n_queries, seed)
    full_QD = torch.cat([_full(subject, loss, index, item_MD) for index in sample.chunks])
    estimates, notes = [], []
    for scale in SCALES:
        sampler, n_scaled, fresh = scaled(subject, scale)
        if scale != 1 and not n_scaled:
            continue
        if fresh:
            notes.append(f"at {scale:g} times the candidates the sampler's state starts anew")
        rng = torch.Generator(subject.device).manual_seed(seed + 1)
        draws, places = [], 0.0
        for _ in range(n_draws):
            made = [_sampled(subject, loss, sampler, index, sample, item_MD, rng) for index in sample.chunks]
            draws.append(torch.cat([gradient for gradient, _ in made]))
            places += sum(n for _, n in made) / len(made) / n_draws
        estimates.append(_estimate(torch.stack(draws), full_QD, scale, name_of(sampler), places))
    unscaled = sorted({type(s).__name__ for s in leaves(model.negatives) if not _has_number(s)})
    if unscaled:
        notes.append(f"{' and '.join(unscaled)}: no number to change, so it stays as it is")
    return Gradient(
        estimates=tuple(estimates),
        loss=what,
        correction=loss.correction,
        in_place=loss is not model.loss,
        n_queries=len(full_QD),
        n_draws=n_draws,
        notes=tuple(notes),
    )


def _softmax_of(subject: Subject) -> tuple[SampledSoftmax, str]:
    """The run's loss, or a softmax in its place."""
    loss = subject.model.loss
    if isinstance(loss, SampledSoftmax):
        return loss, f"SampledSoftmax, correction = {loss.correction!r}, exclude = {loss.exclude!r}"
    name = type(loss).__name__
    while isinstance(loss, Symmetric):
        loss = loss.of
    counted = subject.model.negatives.density in ("exact", "approximate")
    softmax = SampledSoftmax(correction="negatives" if counted else "none")
    if isinstance(loss, RowLoss):
        softmax.temperature = float(loss.current_temperature())
    return softmax, (
        f"{name} is no sampled softmax, so this is of SampledSoftmax(temperature={softmax.temperature:.3g}, "
        f"correction={softmax.correction!r}) in its place"
    )


def _catalogue(subject: Subject) -> Tensor:
    """[M, D] vectors of all items as training has them."""
    n, model = subject.store.n_items, subject.model
    rows = (torch.arange(at, min(at + ITEMS_AT_A_TIME, n)) for at in range(0, n, ITEMS_AT_A_TIME))
    with torch.no_grad():
        return torch.cat([model.items(row.to(subject.device)) for row in rows])


class _Sample:
    """Queries that stand still, and others to fill a batch with them."""

    def __init__(self, subject: Subject, n_queries: int, seed: int) -> None:
        batches = subject.batches
        self.batches = batches
        self.batch_size = subject.facts.batch_size
        self.rng = torch.Generator().manual_seed(seed)
        index = batches.order(self.rng)[: 4 * n_queries]
        if batches.batch_of == "pairs":
            index = _one_a_query(index, batches.event_query[index])
        self.chunks = index[:n_queries].split(max(1, self.batch_size // MOST_OF_BATCH))
        self._left = index[:0]

    def others(self, index: Tensor) -> Tensor:
        """[B - 1] others than ``index``, in the order of epochs."""
        n = min(self.batch_size - 1, self.batches.n_batched - len(index))
        found = index[:0]
        while len(found) < n:
            if not len(self._left):
                self._left = self.batches.order(self.rng)
            want = n - len(found)
            some, self._left = self._left[:want], self._left[want:]
            found = torch.cat([found, some[~torch.isin(some, index)]])
        return found


def _one_a_query(index: Tensor, query: Tensor) -> Tensor:
    """The first event of each query; events without one are all there."""
    key = torch.where(query < 0, -1 - index, query)
    _, where = key.unique(return_inverse=True)
    first = torch.full((int(where.max()) + 1,), len(index)).scatter_reduce(0, where, torch.arange(len(index)), "amin")
    return index[first.sort().values]


def _full(subject: Subject, loss: SampledSoftmax, index: Tensor, item_MD: Tensor) -> Tensor:
    """[q, D] gradient of the full softmax."""
    catalogue = Catalogue()
    catalogue.setup(subject.facts)
    batch = subject.batches.at(index).to(subject.device)
    look = _Frozen(subject, item_MD)
    drawn = propose(catalogue, batch, look, torch.Generator(subject.device))
    if loss.exclude == "none":  # then the positives are among the items that are summed over, and not added once more
        drawn = replace(drawn, blocks=tuple(replace(block, of_batch=True) for block in drawn.blocks))
    full = SampledSoftmax(
        temperature=float(loss.current_temperature()),
        correction="none",
        exclude=loss.exclude,
    )
    return _query_gradient(subject, full, batch, drawn, item_MD)


def _sampled(
    subject: Subject,
    loss: SampledSoftmax,
    sampler: Sampler,
    index: Tensor,
    sample: _Sample,
    item_MD: Tensor,
    rng: torch.Generator,
) -> tuple[Tensor, float]:
    """[q, D] gradient of one draw, and the candidates of a query."""
    others = sample.others(index)
    batch = subject.batches.at(torch.cat([index, others])).to(subject.device)
    of_sample = subject.batches.at(index).to(subject.device)
    look = _Frozen(subject, item_MD)
    look.batch = batch
    with torch.no_grad():
        drawn = propose(sampler, batch, look, rng)
    line_q = _lines_of(of_sample, batch, len(index))
    other_item = _items_of(subject, others).to(subject.device)
    blocks = tuple(_for_sample(block, line_q, other_item, loss.exclude != "none") for block in drawn.blocks)
    places = sum((b.log_weight > -math.inf).sum().item() / (len(line_q) if b.row.dim() == 2 else 1) for b in blocks)
    positive_log_count_p = _counts_of_positives(sampler, of_sample, batch, look, line_q)
    found = Candidates(blocks=blocks, positive_log_count_P=positive_log_count_p)
    return _query_gradient(subject, loss, of_sample, found, item_MD), places


def _items_of(subject: Subject, others: Tensor) -> Tensor:
    """Items that events, or queries, bring."""
    if subject.batches.batch_of == "pairs":
        return subject.batches.event_item[others]
    return subject.batches.batched_pairs.items(subject.batches.trained_Q[others]).value


def _counts_of_positives(sampler: Sampler, of_sample: Batch, batch: Batch, look: _Frozen, line_q: Tensor) -> Tensor:
    """[p] log counts of the sample's positives, by the law of the batch that was drawn for."""
    if sampler.density == "none":
        return torch.full(of_sample.item_P.shape, math.nan, device=of_sample.item_P.device)
    log_count = sampler.log_count(of_sample.item_P, batch, look)
    if log_count.dim() == 1:
        return log_count
    return log_count[line_q[of_sample.of_P], torch.arange(len(of_sample.item_P), device=log_count.device)]


def _lines_of(of_sample: Batch, batch: Batch, n: int) -> Tensor:
    """[q] which queries of ``batch`` are those of the sample. They come first, unless a batch sorts its queries."""
    if len(batch.query_B) > 1 and bool((batch.query_B[1:] > batch.query_B[:-1]).all()):
        return torch.searchsorted(batch.query_B, of_sample.query_B)
    return torch.arange(n, device=batch.query_B.device)


def _for_sample(block: Block, line_q: Tensor, other_item: Tensor, only_others: bool) -> Block:
    """A block as the sample's queries are offered it."""
    if block.row.dim() == 2:
        mix = block.mix
        if mix is not None:
            mix = replace(
                mix,
                first_BK=mix.first_BK[line_q],
                second_BKH=mix.second_BKH[line_q],
                share_BKH=mix.share_BKH[line_q],
            )
        return replace(
            block,
            row=block.row[line_q],
            log_count=block.log_count[line_q],
            log_weight=block.log_weight[line_q],
            mix=mix,
        )
    log_count = block.log_count if block.log_count.dim() == 1 else block.log_count[line_q]
    if not (block.of_batch and only_others):
        return replace(block, log_count=log_count)
    kept = torch.isin(block.row, other_item)
    return replace(block, row=block.row[kept], log_count=log_count[..., kept], log_weight=block.log_weight[kept])


def _query_gradient(subject: Subject, loss: SampledSoftmax, batch: Batch, drawn: Candidates, item_MD: Tensor) -> Tensor:
    """[q, D] of the loss summed over the queries."""
    with torch.no_grad():
        vectors = subject.model.towers.encode_query(to_device(batch.query, subject.device))
    query_qD = vectors.detach().requires_grad_()
    encoded = encode(
        query_qD,
        lambda row: item_MD.index_select(0, row),
        batch,
        drawn,
        layers=subject.model.item_layers,
        unit=subject.model.towers.normalise,
    )
    tile = tile_for(subject.device, len(encoded.shared.row) + encoded.own.row.shape[1])
    value, _ = loss(encoded, tile=tile)
    if not value.requires_grad:
        return torch.zeros_like(vectors)
    (gradient,) = torch.autograd.grad(value, query_qD)
    return gradient * encoded.total_weight


def _estimate(draw_RQD: Tensor, full_QD: Tensor, scale: float, name: str, places: float) -> Estimate:
    n = len(draw_RQD)
    draw_RX, full_X = draw_RQD.flatten(1).double(), full_QD.flatten().double()
    size = max(float(full_X.square().sum()), 1e-300)
    off_RX = draw_RX - full_X
    bias_2, error = _of_pairs(off_RX @ off_RX.T / size)
    mean_2, _ = _of_pairs(draw_RX @ draw_RX.T / size)
    noise_2 = float(draw_RX.var(0).sum()) / size
    along = float(draw_RX.mean(0) @ full_X) / size
    return Estimate(
        scale=scale,
        sampler=name,
        places=places,
        bias=math.sqrt(max(bias_2, 0.0)),
        bias_low=math.sqrt(max(bias_2 - 1.96 * error, 0.0)),
        bias_high=math.sqrt(max(bias_2 + 1.96 * error, 0.0)),
        noise_floor=math.sqrt(noise_2 / n),
        noise=math.sqrt(noise_2),
        cosine=min(along / math.sqrt(mean_2), 1.0) if mean_2 > 0 else math.nan,
    )


def _of_pairs(product_RR: Tensor) -> tuple[float, float]:
    """Mean over pairs of different draws, and its standard error by leaving out one draw after the other."""
    n = len(product_RR)
    pairs_R = product_RR.sum(1) - product_RR.diagonal()
    total = float(pairs_R.sum())
    if n < 3:
        return total / (n * (n - 1)), math.nan
    without_R = (total - 2 * pairs_R) / ((n - 1) * (n - 2))
    return total / (n * (n - 1)), math.sqrt((n - 1) / n * float((without_R - without_R.mean()).square().sum()))


def scaled(subject: Subject, scale: float) -> tuple[Sampler, int, bool]:
    """The sampler with every ``n`` in it times ``scale``; how many there are; whether its state starts anew."""
    now = subject.model.negatives
    if scale == 1:
        return now, sum(_has_number(s) for s in _samplers(now)), False
    sampler = copy.deepcopy(subject.run.negatives)
    numbered = [s for s in _samplers(sampler) if _has_number(s)]
    for one in numbered:
        one.n = max(1, round(_number_of(one) * scale))  # type: ignore[assignment]
    if not numbered:
        return sampler, 0, False
    sampler.setup(subject.facts)
    sampler.to(subject.device).eval()
    state, empty = now.state_dict(), sampler.state_dict()
    fits = state.keys() == empty.keys() and all(state[name].shape == empty[name].shape for name in state)
    if fits:
        sampler.load_state_dict(state)
    return sampler, len(numbered), not fits


def _samplers(sampler: Sampler) -> Iterator[Sampler]:
    return (module for module in sampler.modules() if isinstance(module, Sampler))


def _number_of(sampler: Sampler) -> int:
    number: int = vars(sampler)["n"]
    return number


def _has_number(sampler: Sampler) -> bool:
    return any(f.name == "n" for f in dataclasses.fields(sampler))


def leaves(sampler: Sampler) -> list[Sampler]:
    """The samplers inside one that hold no further ones."""
    return [s for s in _samplers(sampler) if sum(1 for _ in _samplers(s)) == 1]


def name_of(sampler: Sampler) -> str:
    """A sampler in words, as it is written in Python."""
    if isinstance(sampler, Mixture):
        return " + ".join(name_of(part) for part in sampler.parts)
    settings = [
        f"{f.name}={name_of(value) if isinstance(value, Sampler) else repr(value)}"
        for f in dataclasses.fields(sampler)
        if f.init and f.repr and not _is_default(f, value := getattr(sampler, f.name))
    ]
    return f"{type(sampler).__name__}({', '.join(settings)})"


def _is_default(field: dataclasses.Field[object], value: object) -> bool:
    return field.default is not dataclasses.MISSING and field.default == value
