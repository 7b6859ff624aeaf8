"""Towers: features of one side to one vector."""

from .tower import Tower, TwoTower

__all__ = ["Tower", "TwoTower"]
