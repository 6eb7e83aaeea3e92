"""Samples of a prior by the sharded job of a tokenization: drawn, and made into pictures and features of pictures."""
