"""From a trained model to a bundle, which is published only if it gives the answers that the model gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bundle import Bundle
from ..bundle.attributes import read_attributes
from ..bundle.bundle import BUNDLE
from ..bundle.samples import sample_rows
from ..bundle.served_tower import ServedTower
from ..bundle.writing import Content, write_bundle
from ..config import run_tree
from ..data.column_files import Tree
from ..data.columns import Column, Columns, RaggedArray, taken
from ..data.readers import Source
from ..data.staging import Staging, check_destination
from ..errors import ArtifactError
from ..evaluation import top_k
from ..index import IndexReport, IndexSettings, Tuned
from ..records import Ragged
from ..version import __version__
from . import checkpoint
from .indexed import TARGET_RECALL, index_left, index_subject
from .loop import FIRST
from .retriever import BEST, Retriever, recent_items

TOLERANCE = 1e-5
"""How far a number of a bundle may be from the model's, as a share of the longest vector or of 1."""
_SAMPLES, _K = 256, 20


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote, and how far its answers are from the model's."""

    folder: Path
    fingerprint: str
    megabytes: float
    n_items: int
    """Live ones."""
    index: str
    """Its kind."""
    rebuilt: bool
    """Whether the index in the model's folder was of the model as it was before, so that another one was built."""
    tuned: Tuned | None
    """What ``target_recall`` found."""
    n_queries: int
    attributes: tuple[str, ...]
    recall: float
    """Share of the ``20`` best items that the index finds for a sample of queries."""
    difference: float
    """Largest of a number in a sample of vectors and scores from what PyTorch gives."""
    report: IndexReport | None
    """Of all kinds of index, as it is in the bundle, where that was asked for."""

    def render(self) -> str:
        """For the command line."""
        lines = [self.head(), f"attributes of items: {', '.join(self.attributes) or 'none'}"]
        if self.rebuilt:
            lines += ["the model has changed since its index was built: built anew for this bundle with its settings"]
        if self.tuned is not None:
            lines += [str(self.tuned.settings), self.tuned.in_words()]
        lines += [
            f"{self.index} finds {self.recall:.4f} of the best {_K} items; "
            f"PyTorch, ONNX and search agree to {self.difference:.0e} on samples of {_SAMPLES} queries and items, "
            "known and made up"
        ]
        if self.report is not None:
            lines += ["", self.report.render()]
        return "\n".join([*lines, "", f"next: twotower recommend {self.folder} --query ..."])

    def head(self) -> str:
        """What was written, on a line."""
        return (
            f"exported {self.n_items:,} live items and {self.n_queries:,} known queries to {self.folder} "
            f"({self.megabytes:,.1f} MB, {self.fingerprint})"
        )

    def to_json(self) -> str:
        """For machines, on one line."""
        report = None if self.report is None else self.report.to_tree()
        return json.dumps({**asdict(self), "report": report}, default=str)


def export(
    model: str | Path,
    out: str | Path,
    *,
    index: IndexSettings | None = None,
    target_recall: float | None = None,
    k: int = 100,
    report: bool = False,
    threads: int = 1,
    show: Sequence[str] | None = None,
    items: Sequence[Source] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a trained model as a bundle: one folder that answers without torch and without the model's store.

    The bundle holds the ids, stored attributes, latest items and seen items of all known queries: it is as private as
    the log.

    Args:
        model: folder that ``train`` wrote, updated or not.
        out: folder of the bundle; it appears whole or not at all.
        index: how live items are found. Without it as by the index that ``build_index`` left in the model's folder:
            by that itself, or by one of the same settings where the model has changed since; by looking at all of them
            (``Exact``) where there is none.
        target_recall: search as little as reaches this recall on held-out queries (``index.tune``).
        k: how many best items the recall is of, that of ``report`` too.
        report: measure every kind of index, and keep that in the bundle (``report_index``, with ``target_recall`` or
            .95).
        threads: to build indexes with.
        show: columns of the item files to keep for titles and filters; all with one value a row, without it.
        items: item files or folders to read these from, instead of those of the run, later ones over earlier: items
            that updates brought are in theirs.
        licence: under which the bundle may be used, for the manifest.
        overwrite: replace a bundle that is there.

    Raises:
        ArtifactError: the model is missing or damaged, ``out`` is taken, or the bundle gives other answers.
        DataError: an item file can't be read or has no such column, or there are too few held-out queries.
        ConfigError: the libraries of the extras ``export`` and ``serve`` are not installed, or the index can't reach
            the target.
    """
    out = Path(out)
    check_destination(out, overwrite, BUNDLE)
    retriever = Retriever.open(model)
    store = retriever.store
    attributes = None
    if show is None or len(show):
        of_run = () if retriever.run.data is None else retriever.run.data.items
        sources: list[Source] = list(items) if items is not None else [of_run] if of_run else []
        attributes = read_attributes(sources, store.schema, store.item_vocabulary, show) if sources else None
    subject = index_subject(retriever, Path(model), with_queries=report or target_recall is not None)
    rebuilt, tuned, measured = False, None, None
    if index is None:
        found, rebuilt = index_left(Path(model), subject, threads=threads)
    else:
        found = subject.build(index, threads=threads)
    if target_recall is not None:
        found, tuned = subject.tuned(found, k=k, target_recall=target_recall)
    if report:
        measured = subject.report(k=k, target_recall=target_recall or TARGET_RECALL, threads=threads)
    content = Content(
        vector_MD=subject.vector_MD,
        index=found,
        seen=_as_arrays(retriever.seen),
        latest=recent_items(store),
        attributes=attributes,
        about={
            **_about(retriever, Path(model) / BEST),
            "licence": licence,
            "index_report": None if measured is None else measured.to_tree(),
        },
    )
    with Staging(out, overwrite, BUNDLE) as staging:
        write_bundle(staging.folder, store, retriever.towers, content)
        bundle = Bundle.open(staging.folder)
        difference, recall = check_parity(retriever, bundle)
        staging.publish()
    return Exported(
        folder=out,
        fingerprint=bundle.fingerprint,
        megabytes=sum(about["size"] for about in bundle.manifest["files"].values()) / 1e6,
        n_items=content.index.n,
        index=content.index.kind,
        rebuilt=rebuilt,
        tuned=tuned,
        n_queries=bundle.manifest["counts"]["queries"] or 0,
        attributes=() if attributes is None else tuple(attributes.column_names),
        recall=recall,
        difference=difference,
        report=measured,
    )


def _about(retriever: Retriever, of: Path) -> Tree:
    """What the manifest says of the model. Where the training data was is nobody's business."""
    settings = {name: value for name, value in run_tree(retriever.run).items() if name not in ("data", "schema")}
    state = checkpoint.read_state(of)
    return {
        "twotower": __version__,
        "run": settings,
        "model": {name: state[name] for name in ("step", "epoch") if name in state}
        | {"updates": retriever.store.n_updates, "checkpoint": checkpoint.fingerprint(of)},
        "metrics": _measured(state, retriever.run.training.metric),
    }


def _measured(state: Tree, metric: str) -> Tree:
    """What is known of the model: by its newest update, of what that held out and of what arrived; else on validation
    data. Of a refit, by the fit before it."""
    found: Tree
    if state.get("days"):
        day = state["days"][-1]
        found = {metric: day["after"] if day["kept"] else day["before"], f"{metric} of what arrived": day["served"]}
    elif state.get("history"):
        found = state["history"][-1]
    else:
        first = state.get(FIRST, {})
        found = {metric: first.get("best_metric"), "epoch": first.get("best_epoch")}
    return {name: value for name, value in found.items() if value is not None}


def _as_arrays(lists: Ragged) -> RaggedArray:
    return RaggedArray(offset=lists.offset.numpy(), value=lists.value.numpy())


# ---------------------------------------------------------------- parity


def check_parity(retriever: Retriever, bundle: Bundle) -> tuple[float, float]:
    """The largest difference between a model and its bundle in a sample, and the share of the best items it finds.

    Compared are vectors of known and made-up queries, of items and made-up items, and the scores of what is found, as a
    share of the longest vector or of 1.

    Raises ArtifactError where one is more than ``TOLERANCE``, and says of which feature.
    """
    store, raw = retriever.store, retriever.raw_queries
    known_B, item_n = _spread(store.n_queries), _spread(store.n_items)
    made_up = [
        query | context for query, context in zip(*(_made_up(retriever, s) for s in ("query", "context")), strict=True)
    ]
    known = raw.encode_known(known_B)
    new = raw.encode(made_up, np.full(len(made_up), -1, np.int64))
    new_items = raw.encoders.encode_rows("item", _made_up(retriever, "item"))
    queries = _Compared("query", retriever.towers.encode_query, bundle.query_tower)
    items = _Compared("item", retriever.towers.encode_item, bundle.item_tower)
    in_towers = max(
        queries.difference(known, len(known_B)),
        queries.difference(new, len(made_up)),
        items.difference({name: taken(column, item_n) for name, column in store.item.items()}, len(item_n)),
        items.difference(new_items, _SAMPLES),
    )
    in_search, recall = _compare_search(retriever, bundle, known, known_B)
    return max(in_towers, in_search), recall


def _spread(n: int) -> NDArray[np.int64]:
    """Up to so many rows of n, from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).astype(np.int64))


def _made_up(retriever: Retriever, side: str) -> list[dict[str, object]]:
    return sample_rows(retriever.store.encoders, side, _SAMPLES)


@dataclass(frozen=True)
class _Compared:
    """A tower twice: as PyTorch has it and as the bundle has it."""

    side: str
    encode: Callable[..., Tensor]
    served: ServedTower

    def difference(self, columns: Mapping[str, Column], n: int) -> float:
        """Largest of n vectors. Raises ArtifactError where it is too large."""
        found = self._difference(columns, n)
        if found <= TOLERANCE:
            return found
        alone = {key: self._difference(_all_missing_but(key, columns, n), n) for key in columns}
        worst = max(alone, key=lambda key: alone[key])
        where = f"feature {worst!r}" if alone[worst] > TOLERANCE else "layers"
        raise ArtifactError(
            f"export: the {self.side} tower gives other vectors in ONNX than in PyTorch, {found:.1e} apart of at most "
            f"{TOLERANCE:.0e}, through its {where}: nothing was written; please report this with the schema"
        )

    def _difference(self, columns: Mapping[str, Column], n: int) -> float:
        with torch.no_grad():
            want_nD = self.encode(Columns(columns, n).take(torch.arange(n)), served=True).numpy()
        return _apart(self.served(columns, n), want_nD, want_nD)


def _apart(found: NDArray[np.float32], want: NDArray[np.float32], vector_nD: NDArray[np.float32]) -> float:
    """Largest difference, as a share of the longest of some vectors or of 1; of what is no number, infinite."""
    longest = max(1.0, float(np.linalg.norm(vector_nD, axis=1).max(initial=0)))
    apart = float(np.abs(found - want).max(initial=0)) / longest
    return apart if math.isfinite(apart) else math.inf


def _all_missing_but(key: str, columns: Mapping[str, Column], n: int) -> dict[str, Column]:
    return {name: column if name == key else _missing(column, n) for name, column in columns.items()}


def _missing(column: Column, n: int) -> Column:
    if isinstance(column, RaggedArray):
        nothing = np.zeros(0, np.float32)
        return RaggedArray.of_lengths(np.zeros(n, np.int64), nothing.astype(np.int64), nothing)
    return np.zeros_like(column) if np.issubdtype(column.dtype, np.floating) else np.full_like(column, -1)


def _compare_search(
    retriever: Retriever, bundle: Bundle, known: Mapping[str, Column], known_B: NDArray[np.int64]
) -> tuple[float, float]:
    """Of the scores of what the bundle finds for known queries from those of these items, and of what it finds when it
    looks at all items from the best there are, place by place; and the share of these that it finds."""
    k = min(_K, bundle.index.n)
    if not len(known_B) or not k:
        return 0.0, 1.0
    query_BD = retriever.encode_queries(Columns(known, len(known_B)))
    served_BD = bundle.query_tower(known, len(known_B))
    found, exact = bundle.index.search(served_BD, k), bundle.index.search(served_BD, k, exact=True)
    best_Bk = top_k(query_BD, retriever.item_MD[retriever.live_rows()], k).score_Qk.numpy()
    true_Bk = (query_BD[:, None] * retriever.item_MD[torch.from_numpy(found.row_Bk)]).sum(2).numpy()
    longest = float(retriever.item_MD.norm(dim=1).max()) * float(query_BD.norm(dim=1).max())
    pairs = ((found.score_Bk, true_Bk), (exact.score_Bk, best_Bk))
    apart = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs) / max(1.0, longest)
    if not apart <= TOLERANCE:
        raise ArtifactError(
            f"export: the bundle's search gives other scores than PyTorch, {apart:.1e} apart of at most "
            f"{TOLERANCE:.0e}: nothing was written; please report this with the schema"
        )
    return apart, float((found.score_Bk >= best_Bk[:, -1:] - TOLERANCE * max(1.0, longest)).mean())
