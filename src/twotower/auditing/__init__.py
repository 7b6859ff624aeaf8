"""What a run's sampler offers, held against what it claims, before anything is trained with it.

subject   the run at hand: data, model, sampler, and batches as a step sees them
law       offered weight against claimed counts, by item and by decile of popularity
offers    places that repeat an item, excluded places, distinct candidates
gradient  bias and noise of the loss's gradient against the full softmax
cost      seconds of a step, phase by phase
verdict   all of it in a few sentences
"""

from .audit import audit
from .report import Audit

__all__ = ["Audit", "audit"]
