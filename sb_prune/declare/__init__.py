"""What can be cut, as plain data: structures, their cost, plans."""
