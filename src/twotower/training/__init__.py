"""Training, and what is done with a trained model."""

from .loop import Trained, evaluate, recommend, train
from .retriever import Recommendation, Retriever

__all__ = ["Recommendation", "Retriever", "Trained", "evaluate", "recommend", "train"]
