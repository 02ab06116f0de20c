"""How Sphinx makes HTML of all Markdown in the repository: `make docs`."""

import importlib.metadata

project = "sb_prune"
release = importlib.metadata.version(project)
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "recipes/**/README.md"]
exclude_patterns = [
    "docs/build",
    "docs/templates",
    "recipes/**/results",
    ".venv",
]
templates_path = ["templates"]
default_role = "code"
myst_heading_anchors = 3
napoleon_google_docstring = False
