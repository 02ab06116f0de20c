"""What every room stands on: disk, hashes, processes, random generators."""
