"""What the recipes' prepare files and YAMLs have in common."""
