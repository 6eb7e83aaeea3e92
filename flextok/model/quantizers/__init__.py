"""Quantizers: what makes codes of the encoder's outputs. A new kind is one file here."""
