"""Training, and what is done with a trained model."""

from .loop import Trained, evaluate, recommend, train
from .retriever import Recommendation, Retriever
from .tune import tune
from .tuned import Trial, Tuned

__all__ = ["Recommendation", "Retriever", "Trained", "Trial", "Tuned", "evaluate", "recommend", "train", "tune"]
