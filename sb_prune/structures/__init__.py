"""What can be cut in each architecture, one file per model family."""
