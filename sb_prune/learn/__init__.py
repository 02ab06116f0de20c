"""Which units stay: gates or scores, under a budget, on a schedule."""
