"""Where the history of a training goes beside its checkpoint: a module for each kind."""
