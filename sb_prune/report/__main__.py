"""`python -m sb_prune.report FOLDER`: see `command`."""

from sb_prune.report.command import main

main()
