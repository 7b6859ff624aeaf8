"""Training, and what is done with a trained model."""

from .fuzzy import FuzzyPositives, Platt, fuzzy_positives
from .loop import Trained, evaluate, recommend, train
from .retriever import Recommendation, Retriever
from .tune import tune
from .tuned import Trial, Tuned

__all__ = [
    "FuzzyPositives",
    "Platt",
    "Recommendation",
    "Retriever",
    "Trained",
    "Trial",
    "Tuned",
    "evaluate",
    "fuzzy_positives",
    "recommend",
    "train",
    "tune",
]
