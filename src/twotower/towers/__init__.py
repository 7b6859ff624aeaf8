"""Towers: features of one side to one vector."""

from .graph import Graph
from .svd_start import SvdStart
from .tower import Tower, TwoTower

__all__ = ["Graph", "SvdStart", "Tower", "TwoTower"]
