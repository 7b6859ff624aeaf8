"""The version, in a place of its own: what writes it down need not import the package's table of contents."""

__version__ = "0.1.0"
