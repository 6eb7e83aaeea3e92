"""The captions of a corpus as features of a text encoder, by the same sharded job as its tokens."""
