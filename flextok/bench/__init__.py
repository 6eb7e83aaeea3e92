"""Measurements of speed, each a command; `make bench` runs them all."""
