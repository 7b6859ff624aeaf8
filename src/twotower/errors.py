"""Everything that can go wrong because of what came in, in one tree.

    TwoTowerError
      SchemaError     the schema, or a file against it
      DataError       a file, a row, a column, a query
      ConfigError     a setting of a run
      ArtifactError   a store, a checkpoint or an index that is missing, damaged or of another version

A message says where (file, column, row, setting), what was found, what was expected and the way out. The command line
prints it as one line and exits with 2. A mistake in a program that calls us stays a ``TypeError`` or ``ValueError``.
"""


class TwoTowerError(Exception):
    """Base of all errors this package raises on purpose."""


class SchemaError(TwoTowerError):
    """The schema contradicts itself, or a file does not fit it."""


class DataError(TwoTowerError):
    """A file, row, column or query can't be used."""


class ConfigError(TwoTowerError):
    """A setting of a run is unknown, mistyped, out of range or at odds with another."""


class ArtifactError(TwoTowerError):
    """A store, checkpoint or index is missing, incomplete, damaged or written by another version."""
