"""One file per family of models: what can be cut in it."""
