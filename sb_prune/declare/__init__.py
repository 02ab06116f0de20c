"""What can be pruned, as plain data: structures, their cost, plans."""
