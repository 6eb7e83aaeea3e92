"""Layers that the models are built of."""
