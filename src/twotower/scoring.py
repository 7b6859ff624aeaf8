"""Query and candidate vectors become scores: similarity, correction and exclusion live here and nowhere else.

``encode`` fetches every distinct item of a batch through the item tower once and merges equal candidates. ``Scores`` is
what a loss sees of some rows: similarities, and reductions (log-sum-exp, sum, mean) that apply weights, corrections and
exclusions. ``run`` evaluates a loss tile by tile: rows of whole queries at a time, the gradient formed in the forward
pass, so that no ``B x N`` matrix is ever held.

Where items come and go, a candidate that is not live at its line's time is excluded too, whichever sampler it came
from. That needs no other counts: c_j is what the sampler offers of item j on average, and whether (line, j) is excluded
depends on no draw. So sum_j w_j / c_j e^{s_j} over what is left has the mean sum_j e^{s_j} over all items that are live
at that time and not known, if the sampler can draw each of them; and laws draw from all that is live at some moment of
the period that is trained on. With correction ``negatives`` the gradient then goes to that of the full softmax over the
items that are live at that time, as candidates grow.

``tile=None`` is the *direct* form, plain autograd over one tile: the oracle's twin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .records import NEG_INF, Batch, Block, Candidates, Encoded, Items, Mix, Ragged, running_sum

Correction = Literal["none", "negatives", "all"]
"""Which logits log-count is subtracted from: no one's, the candidates', or the positive's too."""

Exclude = Literal["known", "positives", "none"]
"""Which items are no candidates of a query: all it is known to like, its positives of this batch, or none."""

DEFAULT_TILE = 128
"""Rows of a tile: 64 to 256 keep it in the second-level cache (measured: docs/decisions.md)."""

_CPU_TILE = 2**22
"""Most scores of a tile on a CPU, of which a loss may hold a dozen copies: 16 MiB of float32 each."""
_GPU_TILE = 2**26
"""Scores of a tile on a GPU, which wants few large products: 256 MiB of float32."""

_INVERSE_AT = 64
"""Excluded items are looked up in a table over the catalogue where that has at most so many places a look-up, else by
bisection (measured: docs/decisions.md)."""

_FEW = 4
"""Up to so small a part of the columns is copied to its place after it was looked at, which takes as long as looking at
the whole (measured: docs/decisions.md)."""


def tile_for(device: torch.device, n_columns: int) -> int:
    """Rows of a tile that suit a device: never more scores than bounded memory allows."""
    if device.type == "cpu":
        return max(1, min(DEFAULT_TILE, _CPU_TILE // max(n_columns, 1)))
    return max(DEFAULT_TILE, _GPU_TILE // max(n_columns, 1))


def encode(
    query_BD: Tensor,
    items: Items,
    batch: Batch,
    candidates: Candidates,
    *,
    layers: Items | None = None,
    unit: bool = False,
) -> Encoded:
    """Vectors of the positives and candidates: one item-tower call over the distinct rows.

    Blocks that mix items layer by layer ask ``layers`` for theirs, [U] rows -> [U, H, D]; what was mixed is brought to
    ``unit`` length where all vectors are.

    Shared candidates of equal row become one column whose ``log_weight`` is the log of their summed weight, which is
    exact for log-sum-exp, sum and mean, and keeps the columns sorted by row, so that exclusion is a binary search.
    """
    shared = [block for block in candidates.blocks if block.row.dim() == 1]
    own = [block for block in candidates.blocks if block.row.dim() == 2]
    shared_block, given_ND = _merge(shared, query_BD)
    own_block = _join_own(own, len(query_BD), query_BD)

    n_given = 0 if given_ND is None else len(given_ND)
    column_row = shared_block.row[: len(shared_block.row) - n_given]
    mixes = [block.mix for block in own if block.mix is not None]
    flat = [mix for mix in mixes if mix.second_BKH.shape[2] == 1]
    of_mixes = [row.flatten() for mix in flat for row in (mix.first_BK, mix.second_BKH)]
    asked = torch.cat([batch.item_P, column_row, own_block.row.flatten().clamp(min=0), *of_mixes])
    need, slot = asked.unique(return_inverse=True)
    table_TD = items(need)
    positive_slot_P, column_slot, own_slot, _ = slot.split(
        [len(batch.item_P), len(column_row), own_block.row.numel(), sum(len(row) for row in of_mixes)]
    )
    column_ND = table_TD.index_select(0, column_slot)
    slot_BK = own_slot.view(own_block.row.shape)
    if mixes:
        table_TD, slot_BK = _with_mixes(own, need, table_TD, slot_BK, layers, unit)
        need = torch.cat([need, need.new_full((len(table_TD) - len(need),), -1)])
    if given_ND is not None:
        shared_block, column_ND = _sort_columns(shared_block, torch.cat([column_ND, given_ND]))
    return Encoded(
        batch=batch,
        query_BD=query_BD,
        table_TD=table_TD,
        row_T=need,
        positive_slot_P=positive_slot_P,
        column_ND=column_ND,
        shared=shared_block,
        slot_BK=slot_BK,
        own=own_block,
        positive_log_count_P=candidates.positive_log_count_P,
        total_weight=batch.weight_P.sum(),
    )


def _with_mixes(
    own: Sequence[Block], need: Tensor, table_TD: Tensor, slot_BK: Tensor, layers: Items | None, unit: bool
) -> tuple[Tensor, Tensor]:
    """The table with a row for each mixed candidate, and slots that point there."""
    tables, slots, end = [table_TD], [], len(table_TD)
    for block, slot in zip(own, slot_BK.split([block.row.shape[1] for block in own], 1), strict=True):
        if block.mix is None:
            slots.append(slot)
            continue
        made_BKD = _mixed(block.mix, need, table_TD, layers)
        if unit:
            made_BKD = F.normalize(made_BKD, dim=-1)
        slots.append(torch.arange(slot.numel(), device=slot.device).view(slot.shape) + end)
        tables.append(made_BKD.flatten(0, 1))
        end += slot.numel()
    return torch.cat(tables), torch.cat(slots, 1)


def _mixed(mix: Mix, need: Tensor, table_TD: Tensor, layers: Items | None) -> Tensor:
    """[B, K, D]"""
    n_layers = mix.second_BKH.shape[2]
    first_BKH = mix.first_BK[:, :, None].expand_as(mix.second_BKH)
    if n_layers == 1:
        row_U, vector_UHD = need, table_TD[:, None]
    else:
        if layers is None:
            raise ValueError("a mix of layers needs towers that tell them")
        row_U = torch.cat([mix.first_BK.flatten(), mix.second_BKH.flatten()]).unique()
        vector_UHD = layers(row_U)
    layer_H = torch.arange(n_layers, device=row_U.device)
    of_first, of_second = (
        vector_UHD[torch.searchsorted(row_U, row.contiguous()), layer_H] for row in (first_BKH, mix.second_BKH)
    )
    share = mix.share_BKH[..., None].to(table_TD.dtype)
    return (share * of_first + (1 - share) * of_second).mean(2)


def positive_scores(query_BD: Tensor, encoded: Encoded) -> Tensor:
    """[P] similarity of each positive with its query."""
    return pair_dots(query_BD, encoded.table_TD, encoded.batch.of_P, encoded.positive_slot_P)


def pair_dots(query_BD: Tensor, table_TD: Tensor, of_P: Tensor, slot_P: Tensor) -> Tensor:
    """[P] <query of_P, vector slot_P>; ``of_P`` rises."""
    scores: Tensor = _PairDot.apply(query_BD, table_TD, of_P, slot_P)  # type: ignore[no-untyped-call]
    return scores


class _PairDot(torch.autograd.Function):
    """<query of p, item of p> for P pairs sorted by query, without ever holding P vectors.

    The products are the gradient of a bag of items by its weights, and their own gradients are weighted bags: three
    passes over the vectors instead of the ten of gather, multiply and sum.
    """

    @staticmethod
    def forward(ctx: Any, query_BD: Tensor, table_TD: Tensor, of_P: Tensor, slot_P: Tensor) -> Tensor:
        ctx.save_for_backward(query_BD, table_TD, of_P, slot_P)
        with torch.enable_grad():
            one_P = torch.ones(len(slot_P), dtype=query_BD.dtype, device=query_BD.device).requires_grad_()
            bag_BD = F.embedding_bag(
                slot_P, table_TD.detach(), _starts(of_P, len(query_BD)), mode="sum", per_sample_weights=one_P
            )
            (score_P,) = torch.autograd.grad(bag_BD, one_P, query_BD)
        return score_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query_BD, table_TD, of_P, slot_P = ctx.saved_tensors
        of_query = F.embedding_bag(
            slot_P, table_TD, _starts(of_P, len(query_BD)), mode="sum", per_sample_weights=outer[0].contiguous()
        )
        sorted_slot_P, order_P = slot_P.sort()
        of_table = F.embedding_bag(
            of_P.index_select(0, order_P),
            query_BD,
            _starts(sorted_slot_P, len(table_TD)),
            mode="sum",
            per_sample_weights=outer[0].index_select(0, order_P),
        )
        return of_query, of_table, None, None


def _starts(rising: Tensor, n: int) -> Tensor:
    """[n] where each of 0 .. n-1 begins in a rising list of them."""
    count = rising.bincount(minlength=n)
    return count.cumsum(0) - count


def _merge(blocks: Sequence[Block], like: Tensor) -> tuple[Block, Tensor | None]:
    """Shared blocks as one: looked-up rows merged and sorted; given vectors are kept apart, at the end."""
    looked_up = [block for block in blocks if block.vector is None]
    given = [block for block in blocks if block.vector is not None]
    device = like.device
    row_N = torch.cat([b.row for b in looked_up]) if looked_up else torch.empty(0, dtype=torch.int64, device=device)
    row_U, where_N = row_N.unique(return_inverse=True)
    weight_U = torch.zeros(len(row_U), dtype=like.dtype, device=device)
    first_U = torch.zeros(len(row_U), dtype=torch.int64, device=device)
    log_count_N = torch.empty(0, dtype=like.dtype, device=device)
    if looked_up:
        log_weight_N = torch.cat([b.log_weight for b in looked_up]).to(like.dtype)
        weight_U.index_add_(0, where_N, log_weight_N.exp())
        first_U.index_copy_(0, where_N, torch.arange(len(row_N), device=device))
        log_count_N = torch.cat([b.log_count for b in looked_up], -1).to(like.dtype)
    row, log_weight = [row_U], [weight_U.log()]
    # A function of the row alone, or of query and row, [B, N]: any copy of a row will do.
    log_count = [log_count_N.index_select(-1, first_U)]
    for block in given:
        row.append(block.row)
        log_weight.append(block.log_weight.to(like.dtype))
        log_count.append(block.log_count.to(like.dtype))
    merged = Block(
        row=torch.cat(row),
        log_count=torch.cat(log_count, -1),
        log_weight=torch.cat(log_weight),
        of_batch=any(block.of_batch for block in blocks),
    )
    vectors = [block.vector.to(like.dtype) for block in given if block.vector is not None]
    return merged, torch.cat(vectors) if vectors else None


def _sort_columns(shared: Block, column_ND: Tensor) -> tuple[Block, Tensor]:
    order = torch.sort(shared.row, stable=True).indices
    sorted_block = replace(
        shared,
        row=shared.row[order],
        log_count=shared.log_count[..., order],
        log_weight=shared.log_weight[order],
    )
    return sorted_block, column_ND.index_select(0, order)


def _join_own(blocks: Sequence[Block], n_queries: int, like: Tensor) -> Block:
    """Own blocks side by side, [B, K]."""
    if any(block.vector is not None for block in blocks):
        raise ValueError("own candidates are looked up by row: a block [B, K] can't bring vectors")
    if not blocks:
        empty = torch.empty(n_queries, 0, device=like.device)
        return Block(row=empty.to(torch.int64), log_count=empty.to(like.dtype), log_weight=empty.to(like.dtype))
    return Block(
        row=torch.cat([b.row for b in blocks], 1),
        log_count=torch.cat([b.log_count for b in blocks], 1).to(like.dtype),
        log_weight=torch.cat([b.log_weight for b in blocks], 1).to(like.dtype),
    )


def corrected_log_count(log_count: Tensor, encoded: Encoded, strength: float) -> Tensor:
    """``strength * log_count + k``, with k such that the counts of the whole catalogue keep their sum.

    k = log sum_j c_j - log sum_j c_j^strength, both sums estimated from the candidates at hand: an item drawn with
    weight w stands for w / c_j items. So a sweep of the strength changes the shape of the correction, not the odds of
    positives against negatives. At strength 1, k = 0.
    """
    if strength == 1:
        return log_count
    blocks = [block for block in (encoded.shared, encoded.own) if block.row.numel()]
    total = [_log_total(block.log_weight) for block in blocks]
    shaped = [_log_total(block.log_weight + (strength - 1) * block.log_count) for block in blocks]
    if not total:
        return log_count
    return strength * log_count + torch.stack(total).logsumexp(0) - torch.stack(shaped).logsumexp(0)


def _log_total(log_x: Tensor) -> Tensor:
    """log sum_j x_j of [N] candidates; of [B, N] the log of the mean of the queries' sums."""
    n_queries = len(log_x) if log_x.dim() == 2 else 1
    return torch.logsumexp(log_x.flatten(), 0) - math.log(n_queries)


class Similarity(NamedTuple):
    """Inner products of one vector of every line with one of every candidate."""

    line_LD: Tensor
    column_ND: Tensor
    """Of the shared candidates."""
    table_TD: Tensor
    """Of the distinct items of the batch, into which own candidates point."""


class Prepared(NamedTuple):
    """What a loss makes of the vectors before the tiles: ordinary autograd over the whole batch."""

    query_BD: Tensor
    """Query vectors as scored."""
    row: dict[str, Tensor]
    """[P] numbers that rows need; ``"positive"``, each positive's score, always."""
    beside: Mapping[str, Similarity] = MappingProxyType({})
    """Further similarities of lines and candidates, by name."""


class TiledLoss(Protocol):
    """What the engine asks of a loss."""

    correction: Correction
    strength: float
    exclude: Exclude
    per_pair: ClassVar[bool]
    by_log_sum_exp: ClassVar[bool]
    """The loss is a ``LogSumExpLoss``."""

    def prepare(self, encoded: Encoded) -> Prepared:
        """What the tiles need."""
        ...

    def rows(self, scores: Scores) -> Tensor:
        """Loss of each positive of a tile, [p]."""
        ...


class Lines:
    """The rows of the score matrix: one a query, or for losses that compare each positive with each candidate one a
    pair."""

    def __init__(self, encoded: Encoded, loss: TiledLoss) -> None:
        batch = encoded.batch
        device = batch.of_P.device
        self.encoded, self.per_pair = encoded, loss.per_pair
        self.correction, self.strength, self.exclude = loss.correction, loss.strength, loss.exclude
        self.query_L = batch.of_P if loss.per_pair else torch.arange(len(batch.query_B), device=device)
        count = torch.ones_like(self.query_L) if loss.per_pair else batch.of_P.bincount(minlength=len(self.query_L))
        self.pair_offset = running_sum(count)
        """[L + 1] pairs of line l are ``pair_offset[l]`` to ``pair_offset[l + 1]``"""
        self.pair_start = self.pair_offset.tolist()
        self.excluded = self._excluded_items()
        self.live = batch.live.take(self.query_L) if loss.per_pair and batch.live is not None else batch.live
        self.slot_LK = encoded.slot_BK.index_select(0, self.query_L) if loss.per_pair else encoded.slot_BK
        self.own = encoded.own if not loss.per_pair else _take_own(encoded.own, self.query_L)
        row_N = encoded.shared.row
        self.columns_distinct = bool((row_N[1:] > row_N[:-1]).all())
        self.column_of_item = self._inverse(row_N)
        self.shared = encoded.shared
        if loss.per_pair and self.shared.log_count.dim() == 2:
            of_line = self.shared.log_count.index_select(0, self.query_L)
            self.shared = replace(self.shared, log_count=of_line)
        self.shift_N = self._log_weight(self.shared)
        """[N], or [L, N] where counts differ from query to query."""
        self.shift_LK = self._log_weight(self.own)

    def __len__(self) -> int:
        return len(self.query_L)

    def _excluded_items(self) -> Ragged | None:
        if self.exclude == "none":
            return None
        if self.exclude == "positives":
            return self._positives()
        known = self.encoded.batch.known
        return known.take(self.query_L) if self.per_pair else known

    def _positives(self) -> Ragged:
        """[L] lists, rising."""
        lists = replace(self.encoded.batch.positives(), value=_sorted_in_lists(self.encoded.batch))
        return lists.take(self.query_L) if self.per_pair else lists

    def _log_weight(self, block: Block) -> Tensor:
        """Weight of a candidate in every reduction: its own times its correction."""
        if self.correction == "none":
            return block.log_weight
        return block.log_weight - corrected_log_count(block.log_count, self.encoded, self.strength)

    def excluded_at(self, start: int, stop: int) -> Tensor:
        """Flat positions in the [C, N + K] tile of candidates that are in the lists of lines ``start`` to ``stop``."""
        return self.query_L.new_empty(0) if self.excluded is None else self._places_of(self.excluded, start, stop)

    def gone_at(self, start: int, stop: int, excluded: Tensor) -> Tensor | None:
        """[C, N + K] which further candidates are not live for lines ``start`` to ``stop``; None where all are.

        Where few columns are lacked by some line, only these are looked at line by line. A line's own positive stays,
        where it is summed over: elsewhere it is among the ``excluded``.
        """
        if self.live is None:
            return None
        live, row_N, own_CK = self.live.slice(start, stop), self.encoded.shared.row, self.own.row[start:stop]
        column_S = live.ever_gone(row_N).nonzero()[:, 0]
        if not len(column_S) and not own_CK.shape[1]:
            return None
        if len(column_S) > len(row_N) // _FEW:
            gone_CN = live.gone(row_N)
        else:
            gone_CN = torch.zeros(stop - start, len(row_N), dtype=torch.bool, device=row_N.device)
            gone_CN.index_copy_(1, column_S, live.gone(row_N[column_S]))
        others = excluded if self.excluded is not None else self._places_of(self._positives(), start, stop)
        gone_CW = torch.cat([gone_CN, live.gone(own_CK)], 1)
        gone_CW.view(-1).index_fill_(0, others, False)
        return gone_CW

    def _places_of(self, lists: Ragged, start: int, stop: int) -> Tensor:
        """Flat positions in the tile where lines ``start`` to ``stop`` have items of their lists."""
        device = self.query_L.device
        row_N, n_own = self.encoded.shared.row, self.own.row.shape[1]
        lists = lists.slice(start, stop)
        item = lists.value
        width = len(row_N) + n_own
        if not len(row_N):
            flat = item.new_empty(0)
        elif self.columns_distinct:
            found, column = self._columns_of(item)
            line = torch.searchsorted(lists.offset, found, right=True) - 1
            flat = line * width + column
        else:  # a queue may hold an item several times
            left = torch.searchsorted(row_N, item)
            hits = torch.searchsorted(row_N, item, right=True) - left
            first = torch.repeat_interleave(left - (hits.cumsum(0) - hits), hits)
            line = torch.repeat_interleave(lists.owner(), hits)
            flat = line * width + first + torch.arange(int(hits.sum()), device=device)
        if not n_own:
            return flat
        return torch.cat([flat, self._excluded_own(start, stop, lists, width)])

    def _columns_of(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """Which of ``item`` are shared candidates, and where among them; candidates are distinct."""
        row_N = self.encoded.shared.row
        if self.column_of_item is None:
            at = torch.searchsorted(row_N, item)
            found = (row_N.index_select(0, at.clamp(max=len(row_N) - 1)) == item).nonzero().squeeze(1)
        else:
            at = self.column_of_item.index_select(0, item.clamp(max=len(self.column_of_item) - 1))
            found = (at >= 0).nonzero().squeeze(1)
        return found, at.index_select(0, found).long()

    def _inverse(self, row_N: Tensor) -> Tensor | None:
        """Column of each item, -1 where it has none, the last place for all items beyond; None where looking up every
        excluded item by bisection takes less than writing this."""
        if self.excluded is None or not len(row_N) or not self.columns_distinct:
            return None
        beyond = int(row_N[-1]) + 1
        if beyond > _INVERSE_AT * len(self.excluded.value):
            return None
        column = torch.full((beyond + 1,), -1, dtype=torch.int32, device=row_N.device)
        column[row_N] = torch.arange(len(row_N), dtype=torch.int32, device=row_N.device)
        return column

    def _excluded_own(self, start: int, stop: int, lists: Ragged, width: int) -> Tensor:
        own_CK = self.own.row[start:stop]
        hit_line, hit_k = lists.holds(own_CK).nonzero(as_tuple=True)
        return hit_line * width + (width - own_CK.shape[1]) + hit_k


def _take_own(own: Block, query_L: Tensor) -> Block:
    return replace(own, row=own.row[query_L], log_count=own.log_count[query_L], log_weight=own.log_weight[query_L])


def _sorted_in_lists(batch: Batch) -> Tensor:
    """The positives of each query, rising inside its list."""
    stride = int(batch.item_P.max()) + 1 if len(batch.item_P) else 1
    return (batch.of_P * stride + batch.item_P).sort().values - batch.of_P * stride


class Scores:
    """What a loss may see of ``C`` lines: similarities, and reductions over their candidates.

    ``negative`` [C, N + K] is the similarity of the prepared query vectors with every candidate, ``beside`` holds the
    further ones that ``prepare`` asked for; ``row`` holds the [p] tensors it made for the tile's pairs.
    """

    def __init__(
        self,
        lines: Lines,
        start: int,
        stop: int,
        negative: Tensor,
        row: dict[str, Tensor],
        beside: dict[str, Tensor] | None = None,
    ) -> None:
        self.lines, self.start, self.stop = lines, start, stop
        self.negative, self.row, self.beside = negative, row, beside or {}
        self.noted: dict[str, Tensor] = {}
        offset = lines.pair_offset[start : stop + 1]
        self.line_p = torch.repeat_interleave(
            torch.arange(stop - start, device=offset.device), offset[1:] - offset[:-1]
        )
        self.excluded = lines.excluded_at(start, stop)
        self.gone = lines.gone_at(start, stop, self.excluded)

    @property
    def log_count(self) -> Tensor:
        """[1, N] or [C, N + K] log expected count of each candidate; [C, N] where it differs from query to query."""
        return self._join(self.lines.shared.log_count, self.lines.own.log_count)

    @property
    def log_weight(self) -> Tensor:
        """[1, N] or [C, N + K] weight in a reduction, correction included."""
        return self._join(self.lines.shift_N, self.lines.shift_LK)

    @property
    def log_weight_alone(self) -> Tensor:
        """[1, N] or [C, N + K] how often each candidate is there, not corrected."""
        return self._join(self.lines.shared.log_weight, self.lines.own.log_weight)

    def _join(self, shared: Tensor, own_LK: Tensor) -> Tensor:
        shared_CN = shared[None, :] if shared.dim() == 1 else shared[self.start : self.stop]
        if own_LK.shape[1] == 0:
            return shared_CN
        return torch.cat([shared_CN.expand(self.stop - self.start, -1), own_LK[self.start : self.stop]], 1)

    @property
    def query_C(self) -> Tensor:
        """Row of each line's query id, -1 where it has none."""
        return self.lines.encoded.batch.query_B.index_select(0, self.lines.query_L[self.start : self.stop])

    def note(self, name: str, value_p: Tensor) -> None:
        """Leave a number for each positive of the tile among the notes of the step."""
        self.noted[name] = value_p.detach()

    def to_pairs(self, x_C: Tensor) -> Tensor:
        """[p] a line's value for each of its positives."""
        return x_C.index_select(0, self.line_p)

    def masked(self, x: Tensor, fill: float) -> Tensor:
        """``x`` with excluded candidates set to ``fill``; no gradient passes through them."""
        if len(self.excluded):
            x = x.reshape(-1).index_fill(0, self.excluded, fill).view_as(x)
        return x if self.gone is None else x.masked_fill(self.gone, fill)

    def mask_(self, x: Tensor, fill: float) -> None:
        """The same in the tensor's own memory."""
        if len(self.excluded):
            x.view(-1).index_fill_(0, self.excluded, fill)
        if self.gone is not None:
            x.masked_fill_(self.gone, fill)

    @property
    def n_excluded(self) -> int:
        """Places (line, candidate) that are excluded."""
        return len(self.excluded) + (0 if self.gone is None else int(self.gone.count_nonzero()))

    def log_sum_exp(self, x: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """[C] log sum_j w_j e^{x_j}; -inf where no candidate is left, with a gradient of zero. ``log_weight`` takes the
        place of the corrected one."""
        x = self.masked(x + (self.log_weight if log_weight is None else log_weight), NEG_INF)
        if x.shape[1] == 0:
            return x.new_full((x.shape[0],), NEG_INF)
        top_C = x.detach().amax(1).clamp(min=torch.finfo(x.dtype).min)
        total_C = (x - top_C[:, None]).exp().sum(1)
        empty_C = total_C == 0  # log at 0 has an infinite slope: give it 1 and set the result
        return (torch.where(empty_C, 1.0, total_C).log() + top_C).masked_fill(empty_C, NEG_INF)

    def weight(self) -> Tensor:
        """[C, N + K] weight of each candidate, 0 where excluded."""
        return self.masked(self.log_weight.exp().expand(self.negative.shape), 0.0)

    def sum(self, x: Tensor) -> Tensor:
        """[C] sum_j w_j x_j"""
        return (self.weight() * self.masked(x, 0.0)).sum(1)

    def mean(self, x: Tensor) -> Tensor:
        """[C] sum_j w_j x_j / sum_j w_j; 0 where no candidate is left."""
        weight = self.weight()
        return (weight * self.masked(x, 0.0)).sum(1) / weight.sum(1).clamp(min=torch.finfo(x.dtype).tiny)

    def alive(self) -> Tensor:
        """[C] whether any candidate is left; a positive without candidates has no loss, and is counted."""
        with torch.no_grad():
            if self.negative.shape[1] == 0:
                return torch.zeros(self.negative.shape[0], dtype=torch.bool, device=self.negative.device)
            present = self.masked(self.log_weight.expand(self.negative.shape), NEG_INF)
            return present.amax(1) != NEG_INF


class LogSumExpLoss(TiledLoss, Protocol):
    """A loss that sees its candidates only through their log-sum-exp: the engine then knows the gradient in closed
    form."""

    def finish(self, log_sum_p: Tensor, scores: Scores) -> Tensor:
        """[p] loss of each positive from log sum_j w_j e^{s_j} of its query."""
        ...


def run(
    loss: TiledLoss, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the loss of every positive over the batch's total weight, and notes per positive.

    ``tile`` is the number of lines held at a time (None: all, by plain autograd). ``gemm`` is the type products are
    taken in (None: that of the vectors); sums, log-sum-exp and loss keep the vectors' type.

    Notes: ``loss`` [P] (detached), ``alive`` [P], whether the positive had any candidate, ``excluded_share``, the share
    of places (line, candidate) that were excluded, and whatever the loss itself noted, [P].
    """
    query_BD, row, beside = loss.prepare(encoded)
    lines = Lines(encoded, loss)
    query_LD = query_BD.index_select(0, lines.query_L) if loss.per_pair else query_BD
    similarities = {"": Similarity(query_LD, encoded.column_ND, encoded.table_TD), **beside}
    if tile is None:
        return _run_direct(loss, lines, similarities, row)
    parameters = [p for p in loss.parameters() if p.requires_grad] if isinstance(loss, torch.nn.Module) else []
    notes: dict[str, Tensor] = {}
    settings = _Settings(loss, lines, tuple(similarities), tuple(row), tile, gemm, notes)
    vectors = [vector for similarity in similarities.values() for vector in similarity]
    total = _Tiled.apply(settings, *vectors, *row.values(), *parameters)  # type: ignore[no-untyped-call]
    return total, notes


def _run_direct(
    loss: TiledLoss, lines: Lines, similarities: dict[str, Similarity], row: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    def all_of(of: Similarity) -> Tensor:
        own_LK = (of.line_LD[:, None] * of.table_TD[lines.slot_LK]).sum(-1)
        return torch.cat([of.line_LD @ of.column_ND.T, own_LK], 1)

    negative, *others = (all_of(similarity) for similarity in similarities.values())
    scores = Scores(lines, 0, len(lines), negative, row, dict(zip(list(similarities)[1:], others, strict=True)))
    alive_P = scores.to_pairs(scores.alive())
    loss_P = torch.where(alive_P, loss.rows(scores), 0.0)
    weight_P = _share(lines.encoded, loss_P.dtype)
    share = torch.tensor(scores.n_excluded / max(scores.negative.numel(), 1))
    notes = {"loss": loss_P.detach(), "alive": alive_P, "excluded_share": share, **scores.noted}
    return (loss_P * weight_P).sum(), notes


def _share(encoded: Encoded, dtype: torch.dtype) -> Tensor:
    """[P] each positive's share of the batch's weight; a batch of zero weight has zero loss, not nan."""
    total = encoded.total_weight.to(dtype)
    return encoded.batch.weight_P.to(dtype) / torch.where(total > 0, total, 1.0)


class _Settings(NamedTuple):
    """What ``_Tiled`` gets that is no tensor."""

    loss: TiledLoss
    lines: Lines
    similarities: tuple[str, ...]
    row: tuple[str, ...]
    tile: int
    gemm: torch.dtype | None
    notes: dict[str, Tensor]


class _Tiled(torch.autograd.Function):
    """Loss and gradient in one pass over tiles of lines; saves only gradients of vectors."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Tensor) -> Tensor:
        loss, lines, notes = settings.loss, settings.lines, settings.notes
        gradient = _Gradients(settings, tensors, any(ctx.needs_input_grad))
        like = tensors[0]
        weight_P = _share(lines.encoded, like.dtype)
        total = torch.zeros((), dtype=like.dtype, device=like.device)
        loss_P = torch.zeros_like(weight_P)
        alive_P = torch.zeros(len(weight_P), dtype=torch.bool, device=weight_P.device)
        for start in range(0, len(lines), settings.tile):
            stop = min(start + settings.tile, len(lines))
            pairs = slice(lines.pair_start[start], lines.pair_start[stop])
            loss_P[pairs], alive_P[pairs], noted = gradient.tile(loss, start, stop, pairs, weight_P[pairs])
            total += (loss_P[pairs] * weight_P[pairs]).sum()  # as a product oneDNN would keep code for every length met
            for name, value_p in noted.items():
                notes.setdefault(name, torch.zeros_like(loss_P))[pairs] = value_p
        notes["loss"], notes["alive"] = loss_P, alive_P
        notes["excluded_share"] = torch.tensor(gradient.n_excluded / max(gradient.n_places, 1))
        ctx.save_for_backward(*gradient.all())
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = ctx.saved_tensors
        if outer[0] != 1:
            scaled = tuple(saved if saved is None else saved * outer[0] for saved in scaled)
        return (None, *scaled)


class _Product:
    """The similarities of one pair of vectors, a tile at a time, and the gradients that come back."""

    def __init__(self, of: Similarity, slot_LK: Tensor, gemm: torch.dtype | None) -> None:
        self.of, self.slot_LK, self.gemm = of, slot_LK, gemm
        self.line_low, self.column_low = self._low(of.line_LD), self._low(of.column_ND)
        self.n_columns, self.n_own = len(of.column_ND), slot_LK.shape[1]
        self.of_line, self.of_column = torch.zeros_like(of.line_LD), torch.zeros_like(of.column_ND)
        self.of_table = torch.zeros_like(of.table_TD) if self.n_own else None
        self.buffer: Tensor | None = None

    def similarities(self, start: int, stop: int) -> Tensor:
        """[C, N + K], in a buffer that the next tile uses again."""
        if self.buffer is None:
            shape = (stop - start, self.n_columns + self.n_own)
            self.buffer = torch.empty(shape, dtype=self.of.line_LD.dtype, device=self.of.line_LD.device)
        out, line_CD = self.buffer[: stop - start], self.of.line_LD[start:stop]
        with torch.no_grad():
            if self.gemm is None and not self.n_own:
                torch.mm(line_CD, self.of.column_ND.T, out=out)
            else:
                out[:, : self.n_columns] = self.line_low[start:stop] @ self.column_low.T
            if self.n_own:
                slot_CK = self.slot_LK[start:stop]
                own_CKD = self.of.table_TD.index_select(0, slot_CK.flatten()).view(*slot_CK.shape, -1)
                out[:, self.n_columns :] = torch.bmm(own_CKD, line_CD[:, :, None])[:, :, 0]
        return out

    def add(self, of_score: Tensor, start: int, stop: int) -> None:
        """Carry the gradient of a tile's similarities to the vectors."""
        line_CD, of_column_CN = self.of.line_LD[start:stop], of_score[:, : self.n_columns]
        if self.gemm is None:
            self.of_line[start:stop] += of_column_CN @ self.of.column_ND
            self.of_column.addmm_(of_column_CN.T, line_CD)
        else:
            low = self._low(of_column_CN)
            self.of_line[start:stop] += (low @ self.column_low).to(line_CD.dtype)
            self.of_column += (low.T @ self.line_low[start:stop]).to(line_CD.dtype)
        if self.of_table is not None:
            slot_S = self.slot_LK[start:stop].flatten()
            of_own_CK = of_score[:, self.n_columns :]
            first_C = torch.arange(0, len(slot_S), self.n_own, device=slot_S.device)
            self.of_line[start:stop] += F.embedding_bag(
                slot_S, self.of.table_TD, first_C, mode="sum", per_sample_weights=of_own_CK.flatten()
            )
            self.of_table.index_add_(0, slot_S, (of_own_CK[:, :, None] * line_CD[:, None]).flatten(0, 1))

    def _low(self, x: Tensor) -> Tensor:
        return x if self.gemm is None else x.to(self.gemm)


class _Gradients:
    """What a pass over the tiles adds up: gradients of vectors, of [P] inputs and of parameters."""

    def __init__(self, settings: _Settings, tensors: tuple[Tensor, ...], wanted: bool) -> None:
        self.lines, self.wanted = settings.lines, wanted
        n_vectors = 3 * len(settings.similarities)
        n_rows = n_vectors + len(settings.row)
        slot_LK = self.lines.slot_LK
        self.products = {
            name: _Product(Similarity(*tensors[3 * i : 3 * i + 3]), slot_LK, settings.gemm)
            for i, name in enumerate(settings.similarities)
        }
        self.row = dict(zip(settings.row, tensors[n_vectors:n_rows], strict=True))
        self.parameters = tensors[n_rows:]
        self.of_row = {name: torch.zeros_like(value) for name, value in self.row.items()}
        self.of_parameter = [torch.zeros_like(p) for p in self.parameters]
        self.n_places = len(self.lines) * (len(tensors[1]) + slot_LK.shape[1])
        self.n_excluded = 0

    def all(self) -> list[Tensor | None]:
        """One for each tensor that came in."""
        of_vectors = [v for p in self.products.values() for v in (p.of_line, p.of_column, p.of_table)]
        return [*of_vectors, *self.of_row.values(), *self.of_parameter]

    def tile(
        self, loss: TiledLoss, start: int, stop: int, pairs: slice, weight_p: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, aliveness and notes of the positives of lines ``start`` to ``stop``; adds their gradients."""
        row = {name: value[pairs].detach().requires_grad_(self.wanted) for name, value in self.row.items()}
        negative, *others = (product.similarities(start, stop) for product in self.products.values())
        beside = dict(zip(list(self.products)[1:], others, strict=True))
        scores = Scores(self.lines, start, stop, negative, row, beside)
        self.n_excluded += scores.n_excluded
        if loss.by_log_sum_exp:
            loss_p, alive_p, of_scores = self._closed(cast(LogSumExpLoss, loss), scores, pairs, weight_p)
        else:
            loss_p, alive_p, of_scores = self._by_autograd(loss, scores, pairs, weight_p)
        for product, of_score in zip(self.products.values(), of_scores, strict=False):
            if of_score is not None:
                product.add(of_score, start, stop)
        return loss_p, alive_p, scores.noted

    def _closed(
        self, loss: LogSumExpLoss, scores: Scores, pairs: slice, weight_p: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """d log-sum-exp / d s_j = softmax_j, in the tile's own memory."""
        x = scores.negative
        with torch.no_grad():
            x += scores.log_weight
            scores.mask_(x, NEG_INF)
            top_C = x.amax(1) if x.shape[1] else x.new_full((x.shape[0],), NEG_INF)
            alive_C = top_C != NEG_INF  # not a number is no reason to leave a line out
            x.sub_(top_C.clamp(min=torch.finfo(x.dtype).min)[:, None]).exp_()
            total_C = torch.where(alive_C, x.sum(1), 1.0)
            log_sum_C = torch.where(alive_C, total_C.log() + top_C, 0.0)
        alive_p = scores.to_pairs(alive_C)
        log_sum_C.requires_grad_(self.wanted)
        with torch.set_grad_enabled(self.wanted):
            loss_p = torch.where(alive_p, loss.finish(scores.to_pairs(log_sum_C), scores), 0.0)
            (gradient,) = self._differentiate(loss_p, weight_p, [log_sum_C], scores, pairs)
        if gradient is None:
            return loss_p.detach(), alive_p, []
        return loss_p.detach(), alive_p, [x.mul_((gradient / total_C)[:, None])]

    def _by_autograd(
        self, loss: TiledLoss, scores: Scores, pairs: slice, weight_p: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        alive_p = scores.to_pairs(scores.alive())
        scores.negative = scores.negative.detach().requires_grad_(self.wanted)
        scores.beside = {name: x.detach().requires_grad_(self.wanted) for name, x in scores.beside.items()}
        with torch.set_grad_enabled(self.wanted):
            loss_p = torch.where(alive_p, loss.rows(scores), 0.0)
            leaves = [scores.negative, *scores.beside.values()]
            gradients = self._differentiate(loss_p, weight_p, leaves, scores, pairs)
        return loss_p.detach(), alive_p, gradients

    def _differentiate(
        self, loss_p: Tensor, weight_p: Tensor, leaves: list[Tensor], scores: Scores, pairs: slice
    ) -> list[Tensor | None]:
        """Adds the gradients of [p] inputs and parameters; returns those of the leaves."""
        if not self.wanted or not loss_p.requires_grad:
            return [None] * len(leaves)
        wrt = [*leaves, *scores.row.values(), *self.parameters]
        found = torch.autograd.grad((loss_p * weight_p).sum(), wrt, allow_unused=True)
        others = found[len(leaves) :]
        for total, part in zip(self.of_row.values(), others[: len(self.of_row)], strict=True):
            if part is not None:
                total[pairs] += part
        for total, part in zip(self.of_parameter, others[len(self.of_row) :], strict=True):
            if part is not None:
                total += part
        return list(found[: len(leaves)])
