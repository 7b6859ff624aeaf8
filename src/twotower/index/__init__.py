"""Finding the best items without looking at all of them: indexes, their tuning and their report.

numpy in, numpy out; torch is not needed. ``Exact`` needs nothing else either, the other kinds need Faiss (the extra
``faiss``).
"""

from .index import Found, Index
from .kinds import HNSW, IVFPQ, IVFSQ8, KINDS, LSH, Exact, IndexSettings
from .report import IndexReport, report
from .tuning import Tuned, recall_of, tune

__all__ = [
    "HNSW",
    "IVFPQ",
    "IVFSQ8",
    "KINDS",
    "LSH",
    "Exact",
    "Found",
    "Index",
    "IndexReport",
    "IndexSettings",
    "Tuned",
    "recall_of",
    "report",
    "tune",
]
