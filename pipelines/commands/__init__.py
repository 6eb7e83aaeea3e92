"""The commands of `flextok`: thin wrappers, whose heavy imports stay inside the functions."""
