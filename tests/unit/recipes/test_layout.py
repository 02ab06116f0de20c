"""Recipes are laid out as SpeechBrain's are."""

import configparser
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECIPES = sorted({path.parent for path in ROOT.glob("recipes/**/train*.py")})
LINKS = [path for path in ROOT.glob("recipes/**/*") if path.is_symlink()]


def name_of(path):
    return path.relative_to(ROOT / "recipes").as_posix()


def requirements(text):
    """Lines that name a package."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in lines if line}


def test_there_are_recipes():
    assert len(RECIPES) >= 8 and len(LINKS) >= 8


@pytest.mark.parametrize("folder", RECIPES, ids=name_of)
def test_a_recipe_has_files_of_its_own(folder):
    own = [*folder.glob("train*.py"), *folder.glob("hparams/*.yaml")]
    own.append(folder / "README.md")
    assert len(own) >= 3
    assert all(path.is_file() and not path.is_symlink() for path in own)


@pytest.mark.parametrize("folder", RECIPES, ids=name_of)
def test_extra_requirements_are_those_of_the_package(folder):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"].values()
    known = [requirements(extra) for extra in extras]
    yamls = [path.read_text() for path in folder.glob("hparams/*.yaml")]
    needs = any("huggingface" in y or "sb_prune.lobes" in y for y in yamls)
    file = folder / "extra_requirements.txt"
    assert file.is_file() == needs
    assert not needs or requirements(file.read_text()) in known


@pytest.mark.parametrize("link", LINKS, ids=name_of)
def test_a_link_leads_straight_to_a_prepare_file(link):
    target = Path(os.path.normpath(link.parent / os.readlink(link)))
    assert target.is_file() and not target.is_symlink()
    assert target.name == link.name and link.name.endswith("_prepare.py")


@pytest.mark.parametrize("folder", RECIPES, ids=name_of)
def test_prepare_links_are_used(folder):
    """One link for each dataset that the recipe prepares, and no other."""
    code = "".join(p.read_text() for p in folder.glob("*.py"))
    links = {path.stem for path in LINKS if path.parent == folder}
    assert all(
        f"import {link}" in code or f"from {link}" in code for link in links
    )
