"""Images drawn from a prior for whoever asks over HTTP: one process, which draws for many at once."""
