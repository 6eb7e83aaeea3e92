"""What is learned: the tokenizer and its parts, the prior, and the one checkpoint format under them."""
