"""Training, and what is done with a trained model."""

from ..bundle.recommending import Recommendation
from .answering import recommend, recommend_all, similar
from .days import Day, Days
from .export import Exported, export
from .fuzzy import FuzzyPositives, Platt, fuzzy_positives
from .indexed import Indexed, build_index, report_index
from .loop import Trained, evaluate, train
from .retriever import Retriever, save_vectors
from .tune import tune
from .tuned import Trial, Tuned
from .update import Forgotten, Updated, forget, history, update, update_from
from .versions import export_version, next_version

__all__ = [
    "Day",
    "Days",
    "Exported",
    "Forgotten",
    "FuzzyPositives",
    "Indexed",
    "Platt",
    "Recommendation",
    "Retriever",
    "Trained",
    "Trial",
    "Tuned",
    "Updated",
    "build_index",
    "evaluate",
    "export",
    "export_version",
    "forget",
    "fuzzy_positives",
    "history",
    "next_version",
    "recommend",
    "recommend_all",
    "report_index",
    "save_vectors",
    "similar",
    "train",
    "tune",
    "update",
    "update_from",
]
