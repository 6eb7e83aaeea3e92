"""Drawing ids from a prior: the law of a draw, and a trunk that makes one position after the other."""
