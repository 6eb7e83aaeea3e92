"""The package's version, part of every fingerprint."""

__version__ = "0.1.0"
