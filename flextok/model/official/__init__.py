"""Published FlexTok checkpoints, read with suspicion."""
