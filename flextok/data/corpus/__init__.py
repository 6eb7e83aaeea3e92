"""A corpus: sources sharded into WebDataset tars with a manifest, and read back."""
