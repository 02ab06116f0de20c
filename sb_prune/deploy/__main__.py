"""`python -m sb_prune.deploy EXPORT --output FOLDER`: see `command`."""

from sb_prune.deploy.command import main

main()
