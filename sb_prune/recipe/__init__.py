"""Code that the recipes' prepare files and YAMLs share."""
