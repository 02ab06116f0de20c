"""What can be pruned in each family of models, one file per family."""
