"""Priors: models over token ids. A new kind is one file here."""
