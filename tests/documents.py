"""The Markdown pages of the repository, taken apart for their tests."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/results").glob("*.md"),
        *(
            path
            for path in (ROOT / "recipes").rglob("README.md")
            if "results" not in path.parts  # of runs: cards of exports
        ),
    ]
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language and its text."""

    language: str
    text: str


def name_of(page):
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """The fenced blocks of a page, in some languages; by default in all.

    Arguments
    ---------
    page : Path
    *languages : str

    Returns
    -------
    list of Block
    """
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(.*?)\n(.*?)^```$", text, re.S | re.M)
    return [
        Block(language, text)
        for language, text in found
        if not languages or language in languages
    ]


def commands(page):
    """Lines of the bash blocks of a page."""
    lines = (block.text.splitlines() for block in blocks(page, "bash"))
    return [line for block in lines for line in block if line]


def prose(page):
    """The text of a page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
