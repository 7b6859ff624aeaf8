"""What is served: a model in one folder that answers without torch, and its answers."""

from .attributes import Where
from .bundle import Bundle, is_bundle, versions_of
from .recommending import Recommendation

__all__ = ["Bundle", "Recommendation", "Where", "is_bundle", "versions_of"]
