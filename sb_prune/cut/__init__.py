"""A masked model computes what the cut model will: masks, then surgery."""
