"""Training, and what is done with a trained model."""

from .days import Day, Days
from .fuzzy import FuzzyPositives, Platt, fuzzy_positives
from .indexed import Indexed, build_index, report_index
from .loop import Trained, evaluate, recommend, train
from .retriever import Recommendation, Retriever, save_vectors
from .tune import tune
from .tuned import Trial, Tuned
from .update import Forgotten, Updated, forget, history, update, update_from

__all__ = [
    "Day",
    "Days",
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
    "forget",
    "fuzzy_positives",
    "history",
    "recommend",
    "report_index",
    "save_vectors",
    "train",
    "tune",
    "update",
    "update_from",
]
