"""One training step: ours against a textbook PyTorch step of the same loss, ``python -m benchmarks.step``.

*Ours* is what ``twotower train`` runs: ``TrainingBatches``, ``Stepper``, ``InBatch() + Uniform(n)``, the tiled
``SampledSoftmax``, ``RowwiseAdagrad``. Both sides are plain id towers, vectors of unit length, temperature 0.05.

*Textbook* is what an engineer writes in an afternoon: ``nn.Embedding(sparse=True)`` twice, all logits at once, log
counts subtracted, accidental hits masked, ``F.cross_entropy``, ``SparseAdam``. It is the same function: to be that, its
in-batch columns are the distinct items of the batch (one ``unique``), each corrected by the count
n / M + P(the item is in the batch). That is to its advantage: a column per pair, as is usual, would give it a sixth
more logits. Its uniform draws are not merged. Ours corrects the positive too (``correction="all"``), as cross-entropy
over corrected logits does. Loss and gradients of the two are checked to be equal before anything is timed.

*Textbook, in place* is the same by an engineer who has met page faults before: the temperature divides the queries, not
the logits, and correction and mask overwrite the logits. The targets are against the plain one.

The optimisers differ: this compares speed, not quality a step. Only ours excludes what else a query is known to like;
here each query has one event, so that there is nothing else.

Every contestant runs in a process of its own, with glibc's allocator *cold*, as it comes (it gives large buffers back
to the system, and touching them anew costs more than the arithmetic), or *warm*, told to keep freed memory. Contestants
take turns, and every figure is the median over all turns.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import cyclopts
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Apart, peak_extra_bytes, report, show
from twotower.config import Run, Training
from twotower.data.batches import TrainingBatches
from twotower.data.columns import Columns
from twotower.data.encoders import Encoders
from twotower.data.splits import GivenSplit
from twotower.data.store import Store
from twotower.data.vocabulary import HashedVocabulary, Vocabulary
from twotower.losses import Loss, SampledSoftmax
from twotower.negatives import InBatch, Mixture, Uniform, propose
from twotower.records import Batch, Encoded
from twotower.schema import Id, Interactions, Schema
from twotower.scoring import encode, tile_for
from twotower.tables import Table
from twotower.towers import TwoTower
from twotower.training.matmul import probe
from twotower.training.step import CurrentModel, Model, Stepper

TEMPERATURE = 0.05
MAX_EVENTS = 1_000_000
TOLERANCE = 1e-4
"""Largest relative difference of the loss, and of the gradients, between ours and the textbook's."""

TARGETS = {
    "speedup_float32_cold": (">=", 4.0),
    "speedup_float32_warm": (">=", 1.8),
    "loss_memory_share": ("<=", 0.15),
    "ten_million_over_one_million": ("<=", 1.5),
}

Precision = Literal["float32", "bfloat16"]
Timing = tuple[float, float]
"""Seconds of one step: on the clock, and of the processor in all threads."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What both contestants are given."""

    queries: int = 1_000_000
    items: int = 1_000_000
    dim: int = 64
    batch: int = 4096
    uniform: int = 8192
    seed: int = 0


def events(sizes: Sizes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows of queries and items: each query once at most, items log-uniformly popular, a whole number of batches."""
    rng = np.random.default_rng(sizes.seed)
    n = min(sizes.queries, MAX_EVENTS) // sizes.batch * sizes.batch
    rank = (sizes.items ** rng.random(n)).astype(np.int64) - 1
    query = rng.permutation(sizes.queries)[:n]
    return query.astype(np.int32), rng.permutation(sizes.items)[rank].astype(np.int32)


# ---------------------------------------------------------------- the textbook's step


class Textbook:
    """Embeddings with sparse gradients, full logits, cross-entropy, SparseAdam."""

    def __init__(self, sizes: Sizes, in_place: bool = False) -> None:
        torch.manual_seed(sizes.seed)
        self.sizes, self.in_place = sizes, in_place
        query_E, item_E = events(sizes)
        self.event_query, self.event_item = torch.from_numpy(query_E).long(), torch.from_numpy(item_E).long()
        self.query = nn.Embedding(sizes.queries, sizes.dim, sparse=True)
        self.item = nn.Embedding(sizes.items, sizes.dim, sparse=True)
        self.optimiser = torch.optim.SparseAdam([self.query.weight, self.item.weight], lr=1e-3)
        share_M = self.event_item.bincount(minlength=sizes.items).double() / len(item_E)
        presence_M = -torch.expm1((sizes.batch - 1) * torch.log1p(-share_M))
        self.log_count_M = (presence_M + sizes.uniform / sizes.items).log().float()
        self.order = torch.randperm(len(item_E)).split(sizes.batch)
        self.next = itertools.cycle(range(len(self.order)))

    def vectors(self, query_B: Tensor, column_N: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D] and [N, D], of unit length."""
        return F.normalize(self.query(query_B)), F.normalize(self.item(column_N))

    def loss(self, query_BD: Tensor, column_ND: Tensor, item_B: Tensor, label_B: Tensor, column_N: Tensor) -> Tensor:
        """Cross-entropy over corrected logits; a candidate that is the positive itself is masked but for the label."""
        hit_BN = item_B[:, None] == column_N
        hit_BN[torch.arange(len(item_B)), label_B] = False
        if self.in_place:
            logits_BN = query_BD / TEMPERATURE @ column_ND.T
            logits_BN -= self.log_count_M[column_N]
            logits_BN.masked_fill_(hit_BN, -math.inf)
        else:
            logits_BN = query_BD @ column_ND.T / TEMPERATURE - self.log_count_M[column_N]
            logits_BN = logits_BN.masked_fill(hit_BN, -math.inf)
        return F.cross_entropy(logits_BN, label_B)

    def step(self) -> float:
        """One step; returns its loss."""
        index = self.order[next(self.next)]
        query_B, item_B = self.event_query[index], self.event_item[index]
        negative = torch.randint(self.sizes.items, (self.sizes.uniform,))
        in_batch, label_B = item_B.unique(return_inverse=True)
        column_N = torch.cat([in_batch, negative])
        self.optimiser.zero_grad()
        loss = self.loss(*self.vectors(query_B, column_N), item_B, label_B, column_N)
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def steps(self, threads: int, n: int) -> list[Timing]:
        """Time ``n`` steps after one that is not counted."""
        return _timed(self.step, threads, n)

    def loss_memory(self, threads: int) -> tuple[int, int]:
        """Peak extra bytes of the loss and its gradients, and the bytes of one copy of the logits."""
        torch.set_num_threads(threads)
        index = self.order[0]
        query_B, item_B = self.event_query[index], self.event_item[index]

        def measure(n: int) -> tuple[int, int]:
            in_batch, label_B = item_B[:n].unique(return_inverse=True)
            column_N = torch.cat([in_batch, torch.randint(self.sizes.items, (self.sizes.uniform,))])
            query_BD, column_ND = (_leaf(vector) for vector in self.vectors(query_B[:n], column_N))
            extra = peak_extra_bytes(lambda: self.loss(query_BD, column_ND, item_B[:n], label_B, column_N).backward())
            return extra, n * len(column_N) * 4

        measure(8)  # the library's own threads and buffers
        return measure(len(index))


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _timed(step: Callable[[], float], threads: int, n: int) -> list[Timing]:
    torch.set_num_threads(threads)
    step()
    timings = []
    for _ in range(n):
        started = time.perf_counter(), time.process_time()
        step()
        timings.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return timings


# ---------------------------------------------------------------- our step


def store_in_memory(sizes: Sizes) -> Store:
    """Queries and items whose only feature is their id, which nobody has as text."""
    schema = Schema(
        interactions=Interactions(item="item", query="user"),
        query={"user": Id(column="user", hash_buckets=sizes.queries)},
        item={"item": Id(column="item", hash_buckets=sizes.items)},
    )
    encoders = Encoders(
        schema=schema,
        vocabularies={
            "query.user": HashedVocabulary(buckets=sizes.queries),
            "item": HashedVocabulary(buckets=sizes.items),
        },
        texts={},
        edges={},
        scalings={},
        mean_ages={},
        last_event_us=0,
        missing={},
    )
    query_E, item_E = events(sizes)
    return Store(
        path=Path(),
        schema=schema,
        encoders=encoders,
        report={},
        n_queries=sizes.queries,
        n_items=sizes.items,
        n_events=len(item_E),
        query_vocabulary=None,
        item_vocabulary=Vocabulary(pa.array([], pa.large_string())),
        query=Columns({"user": np.arange(sizes.queries, dtype=np.int32)}, sizes.queries),
        item=Columns({"item": np.arange(sizes.items, dtype=np.int32)}, sizes.items),
        context=Columns({}, len(item_E)),
        query_row=query_E,
        item_row=item_E,
        weight=np.ones(len(item_E), np.float32),
        time_us=None,
        taken=None,
        split=None,
        arrived=np.zeros(len(item_E), np.int32),
        n_updates=0,
        item_number=np.arange(sizes.items),
        item_seen_us=None,
        days=(),
        query_item_row=None,
    )


class Ours:
    """The package's own step over a store in memory."""

    def __init__(self, sizes: Sizes, precision: Precision, matmul: str, loss: Loss | None = None) -> None:
        """``matmul`` is the setting of float32 products that ``probe`` found; ``loss`` takes the textbook's place."""
        torch.set_float32_matmul_precision(matmul)
        torch.manual_seed(sizes.seed)
        store = store_in_memory(sizes)
        self.sizes = sizes
        self.training = Training(batch_size=sizes.batch, precision=precision, seed=sizes.seed)
        run = Run(
            schema=store.schema,
            split=GivenSplit(),
            towers=TwoTower(dim=sizes.dim),
            negatives=Mixture(parts=(InBatch(), Uniform(sizes.uniform))),
            loss=loss or SampledSoftmax(temperature=TEMPERATURE, correction="all"),
            training=self.training,
        )
        self.batches = TrainingBatches(
            store, np.arange(store.n_events), batch_of="pairs", batch_size=sizes.batch, seed=sizes.seed
        )
        self.model = Model(run, store, self.batches.facts()).train()
        self.stepper = Stepper(self.model, self.training)
        self.stream = (batch for epoch in itertools.count() for batch in self.batches.epoch(epoch))
        self.number = itertools.count(1)

    def step(self) -> float:
        """One step; returns its loss."""
        return self.stepper(next(self.stream), next(self.number), 1.0).loss

    def steps(self, threads: int, n: int) -> list[Timing]:
        """Time ``n`` steps after one that is not counted."""
        return _timed(self.step, threads, n)

    def parts(self, threads: int, n: int) -> list[dict[str, float]]:
        """Seconds of each part of ``n`` steps that do what ``Stepper`` does, in the same order."""
        torch.set_num_threads(threads)
        found = []
        for _ in range(n):
            clock = Clock()
            with clock.part("batch"):
                batch = next(self.stream)
            loss = self.loss(self.encode(batch, clock), clock)
            with clock.part("backward of towers"):
                loss.backward()
            with clock.part("optimiser"):
                for _, table, optimiser in self.model.tables():
                    touched = table.gradient()
                    assert touched is not None
                    optimiser.step(table.weight, *touched, 1.0)
            found.append(dict(clock.seconds))
        return found

    def encode(self, batch: Batch, clock: Clock) -> Encoded:
        """Candidates drawn and everything encoded."""

        def items(row: Tensor) -> Tensor:
            with clock.part("gather"):
                return self.model.items(row)

        rng = torch.Generator().manual_seed(next(self.number))
        with clock.part("gather"):
            query_BD = self.model.towers.encode_query(batch.query)
        with clock.part("sample"):
            candidates = propose(self.model.negatives, batch, CurrentModel(self.model, query_BD, 1), rng)
        with clock.part("merge"):
            return encode(query_BD, items, batch, candidates)

    def loss(self, encoded: Encoded, clock: Clock) -> Tensor:
        """The loss, which forms its gradients as it goes."""
        with clock.part("loss and its gradient"):
            loss: Tensor = self.model.loss(
                encoded, tile=tile_for(self.stepper.device, len(encoded.shared.row)), gemm=self.stepper.gemm
            )[0]
            return loss

    def loss_memory(self, threads: int) -> tuple[int, int]:
        """Peak extra bytes of the loss and its gradients, and the bytes of one copy of the logits."""
        torch.set_num_threads(threads)

        def measure(n: int) -> tuple[int, int]:
            encoded = self.encode(self.batches.of_events(torch.arange(n)), Clock())
            leaves = replace(
                encoded,
                query_BD=_leaf(encoded.query_BD),
                table_TD=_leaf(encoded.table_TD),
                column_ND=_leaf(encoded.column_ND),
            )
            extra = peak_extra_bytes(lambda: self.loss(leaves, Clock()).backward())
            return extra, n * len(encoded.shared.row) * 4

        measure(8)  # the library's own threads and buffers
        return measure(self.sizes.batch)

    def difference_to_textbook(self) -> dict[str, float]:
        """Relative differences of loss and gradients: same batch, same draw, same tables."""
        book, batch = Textbook(self.sizes), next(self.stream)
        tables = self.model.towers.all_tables()
        book.query.weight, book.item.weight = (nn.Parameter(table.weight) for table in tables)
        query_BD = self.model.towers.encode_query(batch.query)
        look, rng = CurrentModel(self.model, query_BD, 1), torch.Generator().manual_seed(self.sizes.seed)
        candidates = propose(self.model.negatives, batch, look, rng)
        ours = self.loss(encode(query_BD, self.model.items, batch, candidates), Clock())
        ours.backward()
        column_N = torch.cat([block.row for block in candidates.blocks])
        label_P = torch.searchsorted(candidates.blocks[0].row, batch.item_P)
        theirs = book.loss(*book.vectors(batch.query_B, column_N), batch.item_P, label_P, column_N)
        theirs.backward()
        return {
            "loss": abs(ours.item() / theirs.item() - 1),
            "gradient of queries": _difference(tables[0], book.query),
            "gradient of items": _difference(tables[1], book.item),
        }


def _difference(ours: Table, theirs: nn.Embedding) -> float:
    touched, expected = ours.gradient(), theirs.weight.grad
    assert touched is not None
    assert expected is not None
    gap = torch.sparse_coo_tensor(touched[0][None], touched[1], expected.shape, check_invariants=True) - expected
    return float(gap.coalesce().values().norm() / expected.coalesce().values().norm())


class Clock:
    """Seconds by part; a part inside another is not counted in the outer one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as ``name``."""
        outer, self._inside = self._inside, 0.0
        started = time.perf_counter()
        yield
        passed = time.perf_counter() - started
        self.seconds[name] += passed - self._inside
        self._inside = outer + passed


# ---------------------------------------------------------------- the benchmark


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A contestant as it is timed."""

    title: str
    ours: bool
    warm: bool
    precision: Precision = "float32"
    in_place: bool = False
    large: bool = False

    def start(self, sizes: Sizes, matmul: str) -> Apart:
        """The contestant in a process of its own."""
        if self.ours:
            return Apart(Ours, sizes, self.precision, matmul, warm=self.warm)
        return Apart(Textbook, sizes, self.in_place, warm=self.warm)


VARIANTS = {
    "textbook_cold": Variant(title="textbook, cold", ours=False, warm=False),
    "textbook_warm": Variant(title="textbook, warm", ours=False, warm=True),
    "in_place_cold": Variant(title="textbook, in place, cold", ours=False, warm=False, in_place=True),
    "in_place_warm": Variant(title="textbook, in place, warm", ours=False, warm=True, in_place=True),
    "ours_cold": Variant(title="ours, cold", ours=True, warm=False),
    "ours_warm": Variant(title="ours, warm", ours=True, warm=True),
    "ours_bf16_warm": Variant(title="ours, bfloat16, warm", ours=True, warm=True, precision="bfloat16"),
    "ours_large": Variant(title="ours, cold, {:,} rows", ours=True, warm=False, large=True),
}


def compare(sizes: Sizes, *, large: int, repeats: int, steps: int, threads: int) -> dict[str, float]:
    """Check, measure memory, time in turns, print; the metrics."""
    matmul = probe().precision
    print(f"float32 products: {matmul} (of torch.set_float32_matmul_precision), {threads} threads")
    _check_agreement(sizes, matmul)
    metrics = _memory(sizes, matmul, threads)
    variants = {name: v for name, v in VARIANTS.items() if large or not v.large}
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(v.start(replace(sizes, queries=large, items=large) if v.large else sizes, matmul))
            for name, v in variants.items()
        }
        counts = sorted({1, threads})
        timings: defaultdict[tuple[str, int], list[Timing]] = defaultdict(list)
        parts: list[dict[str, float]] = []
        for _, count, (name, contestant) in itertools.product(range(repeats), counts, contestants.items()):
            timings[name, count] += contestant.call("steps", count, steps)
            if name == "ours_cold" and count == threads:
                parts += contestant.call("parts", count, steps)
    clock = {at: median(wall for wall, _ in found) for at, found in timings.items()}
    _show_steps(variants, clock, timings, large)
    _show_parts(parts)
    return metrics | _metrics(clock, sizes, threads, large)


def _check_agreement(sizes: Sizes, matmul: str) -> None:
    with Apart(Ours, sizes, "float32", matmul) as ours:
        found = ours.call("difference_to_textbook")
    title = "Same batch, draw and tables: relative difference, ours to textbook"
    show(title, ("of", "difference"), list(found.items()))
    wrong = {name: value for name, value in found.items() if not value <= TOLERANCE}
    if wrong:
        raise AssertionError(f"ours and the textbook are not the same function: {wrong}, expected at most {TOLERANCE}")


def _memory(sizes: Sizes, matmul: str, threads: int) -> dict[str, float]:
    rows = []
    for title, variant in (("textbook", VARIANTS["textbook_cold"]), ("ours", VARIANTS["ours_cold"])):
        with variant.start(sizes, matmul) as contestant:
            extra, logits = contestant.call("loss_memory", threads)
        rows.append((title, extra / 2**20, extra / logits))
    show("Peak extra memory of the loss and its gradients", ("", "MiB", "share of one copy of the logits"), rows)
    return {"loss_memory_share": rows[1][2], "textbook_loss_memory_share": rows[0][2]}


def _show_steps(
    variants: dict[str, Variant],
    clock: dict[tuple[str, int], float],
    timings: dict[tuple[str, int], list[Timing]],
    large: int,
) -> None:
    rows = []
    for (name, threads), found in sorted(timings.items(), key=lambda entry: entry[0][1]):
        processor = median(cpu for _, cpu in found)
        gain = clock["textbook_warm" if variants[name].warm else "textbook_cold", threads] / clock[name, threads]
        title = variants[name].title.format(large)
        rows.append((title, threads, clock[name, threads] * 1e3, min(found)[0] * 1e3, processor * 1e3, gain))
    show("One step, milliseconds", ("", "threads", "median", "least", "processor", "times the textbook's speed"), rows)


def _show_parts(parts: list[dict[str, float]]) -> None:
    each = {name: median(step[name] for step in parts) for name in parts[0]}
    total = sum(each.values())
    rows = [(name, seconds * 1e3, f"{seconds / total:.1%}") for name, seconds in (each | {"sum": total}).items()]
    show("Where our step goes (float32, cold, all threads)", ("", "milliseconds", "share"), rows)


def _metrics(clock: dict[tuple[str, int], float], sizes: Sizes, threads: int, large: int) -> dict[str, float]:
    def speedup(baseline: str, ours: str, count: int) -> float:
        return clock[baseline, count] / clock[ours, count]

    metrics: dict[str, float] = {}
    for count, suffix in ((threads, ""), (1, "_1_thread")):
        metrics |= {
            f"speedup_float32_cold{suffix}": speedup("textbook_cold", "ours_cold", count),
            f"speedup_float32_warm{suffix}": speedup("textbook_warm", "ours_warm", count),
            f"speedup_bf16_warm{suffix}": speedup("textbook_warm", "ours_bf16_warm", count),
            f"speedup_in_place_cold{suffix}": speedup("in_place_cold", "ours_cold", count),
            f"speedup_in_place_warm{suffix}": speedup("in_place_warm", "ours_warm", count),
            f"step_ms{suffix}": clock["ours_cold", count] * 1e3,
            f"examples_per_s{suffix}": sizes.batch / clock["ours_cold", count],
        }
    if large:
        metrics["ten_million_over_one_million"] = clock["ours_large", threads] / clock["ours_cold", threads]
    return metrics


def _show_targets(metrics: dict[str, float]) -> None:
    rows = []
    for name, (relation, bound) in TARGETS.items():
        if name in metrics:
            met = metrics[name] >= bound if relation == ">=" else metrics[name] <= bound
            rows.append((name, metrics[name], f"{relation} {bound}", "yes" if met else "NO"))
    show("Targets", ("", "found", "target", "met"), rows)


def main(
    *,
    queries: int = 1_000_000,
    items: int = 1_000_000,
    large: int = 10_000_000,
    dim: int = 64,
    batch: int = 4096,
    uniform: int = 8192,
    repeats: int = 7,
    steps: int = 5,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Our training step against a textbook PyTorch step of the same loss.

    ``large`` is the number of rows of both tables in the run that shows what larger tables cost (0: leave it out),
    ``repeats`` how often the contestants take turns, ``steps`` the steps of a turn, ``threads`` all cores without it.
    """
    started = time.perf_counter()
    sizes = Sizes(queries=queries, items=items, dim=dim, batch=batch, uniform=uniform, seed=seed)
    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    metrics = compare(sizes, large=large, repeats=repeats, steps=steps, threads=threads)
    _show_targets(metrics)
    settings = asdict(sizes) | {"large": large, "repeats": repeats, "steps": steps}
    report("step", metrics, seconds=time.perf_counter() - started, seed=settings.pop("seed"), settings=settings)


if __name__ == "__main__":
    cyclopts.run(main)
