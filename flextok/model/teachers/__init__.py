"""Frozen image encoders whose spatial features a decoder is aligned with in its training."""
