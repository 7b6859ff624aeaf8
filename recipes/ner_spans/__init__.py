"""Negatives from the unlabelled spans of each sentence."""
