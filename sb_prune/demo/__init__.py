"""Speech synthesised on the spot, in the layouts of public data sets."""
