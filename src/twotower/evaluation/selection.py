"""Keeping the best candidates of a few queries while tiles of scores come by.

In a tile the candidates are narrowed down in steps that together cost less than the multiplication: the best of every
64 columns, then of every 8 inside the chosen groups, then the columns themselves. A group whose best score does not
beat the last of the list so far is not looked into.

Order is total, whatever the tiles: greater score first, then lower row. One int64 a candidate, the score's bits in
order above and the row below, makes selecting one ``topk`` of distinct integers.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..records import NEG_INF
from .inputs import LAST_ROW

GROUP = 64
"""Columns of the widest group; a tile is as many columns as full groups."""
_WIDTHS = (GROUP, 8, 1)
_ROW_BITS = 32


class Best:
    """The best L candidates of q queries among the tiles seen so far."""

    def __init__(self, n_queries: int, keep: int, device: torch.device) -> None:
        nothing = _keys(torch.full((1, 1), NEG_INF, device=device), torch.full((1, 1), -1, device=device))
        self.key_qL = nothing.expand(n_queries, keep)
        self.tied_q = torch.zeros(n_queries, dtype=torch.int64, device=device)
        """Candidates with the score of the last place where they go on after it, 0 elsewhere."""

    def add(self, score_qC: Tensor, first_row: int, *, count_ties: bool) -> None:
        """Take in a tile of scores whose first column is item ``first_row``; rows rise from tile to tile.

        Columns without a candidate are -inf. Ties at the end of the list are counted on demand, which needs L > 1.
        """
        old_qL, keep = self.key_qL, self.key_qL.shape[1]
        best_qG = score_qC.view(len(score_qC), -1, GROUP).amax(2)
        # A later row loses a tie, so a group that only equals the last place has nothing to add.
        n_groups = int((best_qG > scores_of(old_qL[:, -1:])).sum(1).max())
        if n_groups:
            new_qn = _narrow(score_qC, best_qG, min(n_groups, keep), keep, first_row)
            self.key_qL = torch.cat([old_qL, new_qn], dim=1).topk(keep).values
        if count_ties:
            self._count_ties(score_qC, best_qG, scores_of(old_qL))

    def _count_ties(self, score_qC: Tensor, best_qG: Tensor, old_qL: Tensor) -> None:
        """Bring ``tied_q`` up to date: ``old_qL`` are the scores of the list before this tile."""
        last_q2 = scores_of(self.key_qL[:, -2:])
        last_q = last_q2[:, 1]
        goes_on_q = (last_q2[:, 0] == last_q) & (last_q > NEG_INF)
        if not bool(goes_on_q.any()):
            self.tied_q.zero_()
            return
        # Where the last score rose, all earlier candidates with the new one were in the list; else they are counted.
        counted_q = (self.tied_q > 0) & (old_qL[:, -1] == last_q)
        before_q = torch.where(counted_q, self.tied_q, (old_qL == last_q[:, None]).sum(1))
        query_g, group_g = ((best_qG >= last_q[:, None]) & goes_on_q[:, None]).nonzero(as_tuple=True)
        score_gw = score_qC.view(len(score_qC), -1, GROUP)[query_g, group_g]
        equal_g = (score_gw == last_q[query_g, None]).sum(1)
        self.tied_q = torch.where(goes_on_q, before_q.index_add(0, query_g, equal_g), 0)


def bytes_per_query(columns: int, keep: int) -> int:
    """Working memory of ``Best`` a query: scores, a copy of the groups looked into, keys of columns and places."""
    looked_at = min(columns, keep * _WIDTHS[1])
    return 8 * columns + 48 * (looked_at + keep)


def scores_of(key: Tensor) -> Tensor:
    """Scores of keys."""
    ordered = (key >> _ROW_BITS).int()
    return torch.where(ordered < 0, ordered ^ LAST_ROW, ordered).view(torch.float32)


def rows_of(key: Tensor) -> Tensor:
    """Rows of keys, -1 where there is no candidate."""
    return torch.where(scores_of(key) == NEG_INF, -1, _numbers_of(key))


def _keys(score: Tensor, number: Tensor) -> Tensor:
    """One int64 each that falls with the score and, at equal scores, with rising number."""
    bits = (score + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ LAST_ROW, bits)  # the bits of negative floats rise as the float falls
    return (ordered.long() << _ROW_BITS) + (LAST_ROW - number)


def _numbers_of(key: Tensor) -> Tensor:
    number: Tensor = LAST_ROW - (key & (2**_ROW_BITS - 1))
    return number


def _narrow(score_qC: Tensor, best_qG: Tensor, n_groups: int, keep: int, first_row: int) -> Tensor:
    """Keys of the best ``keep`` columns of the best ``n_groups`` groups.

    The best n columns are in the best n groups, for the best column of a group is at least as good as the others in it.
    Groups are runs of rows, so to order them by (best score, number) is to order their best columns by (score, row).
    """
    number_qG = torch.arange(best_qG.shape[1], device=best_qG.device)
    key_qn = _keys(best_qG, number_qG).topk(n_groups, sorted=False).values
    for wide, narrow in pairwise(_WIDTHS):
        group_qn1 = _numbers_of(key_qn)[:, :, None]
        score_qnw = _groups_of(score_qC, wide, group_qn1)
        best_qns = score_qnw.unflatten(2, (-1, narrow)).amax(3) if narrow > 1 else score_qnw
        inside_s = torch.arange(wide // narrow, device=score_qC.device)
        key_qN = _keys(best_qns, group_qn1 * (wide // narrow) + inside_s).flatten(1)
        key_qn = key_qN.topk(min(keep, key_qN.shape[1]), sorted=False).values
    return key_qn - first_row


def _groups_of(score_qC: Tensor, wide: int, group_qn1: Tensor) -> Tensor:
    """[q, n, wide] scores of chosen groups; rows are copied whole, many times faster than ``gather``."""
    score_gw = score_qC.view(-1, wide)
    start_q11 = torch.arange(0, len(score_gw), len(score_gw) // len(score_qC), device=score_qC.device)[:, None, None]
    return score_gw.index_select(0, (start_q11 + group_qn1).flatten()).view(*group_qn1.shape[:2], wide)
