"""Towers: features of one side to one vector."""

from .table import Table, TableSettings
from .tower import Tower, TwoTower

__all__ = ["Table", "TableSettings", "Tower", "TwoTower"]
