"""Presets: ready-made blocks for a recipe's YAML, addressed by name.

    pruning: !apply:sb_prune.preset
        name: conformer_l0
        module: Transformer
        target: 0.5

`python -m sb_prune.presets` lists them; with a name it prints that one.
"""

import argparse
import functools
import importlib.resources
import pydoc
from collections.abc import Mapping
from dataclasses import dataclass, replace

import yaml

from sb_prune.support.messages import closest, shown
from sb_prune.support.values import check_arguments

FOLDER = importlib.resources.files("sb_prune") / "hparams"


def preset(name=None, **overrides):
    """Makes the block of a preset, with some of its keys replaced.

    Arguments
    ---------
    name : str
        Name of the preset.
    **overrides
        Keys of the block -> value. A mapping for a key where the preset has
        a class or function replaces or adds arguments of that class; every
        other value takes the place of the preset's, so that `!name:` and
        `!new:` choose another class, and null none.

    Returns
    -------
    dict
        The block: what `sb_prune.PruningSettings` or `sb_prune.LayerSettings`
        is made from.

    Raises
    ------
    ValueError
        If there is no such preset, or a class whose object is made here
        (`!new:`) does not take its arguments.

    Example
    -------
    >>> block = preset("conformer_l0", target=0.5, gates={"bound": 8.0})
    >>> block["target"], block["gates"].keywords["bound"]
    (0.5, 8.0)
    """
    block = _replaced(_tree(name), overrides)
    return {
        key: _built(value, f"preset {name}: {key}")
        for key, value in block.items()
    }


def preset_names():
    """Names of all presets, sorted.

    Returns
    -------
    list of str

    Example
    -------
    >>> "conformer_l0" in preset_names()
    True
    """
    files = [file.name for file in FOLDER.iterdir()]
    return sorted(
        file.removesuffix(".yaml") for file in files if file.endswith(".yaml")
    )


def preset_text(name):
    """The YAML of a preset.

    Arguments
    ---------
    name : str

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no such preset.

    Example
    -------
    >>> print(preset_text("conformer_l0").splitlines()[1])
    # Method: learned gates (L0) and layerwise distillation, Conformer encoder
    """
    names = preset_names()
    if name not in names:
        meant = closest(name, names)
        guess = f"did you mean {meant}? Write" if meant else "write"
        raise ValueError(
            f"preset: name: {shown(name)} is no preset; {guess} one of "
            f"{', '.join(names)}, or `!include:FILE` for a file of your own"
        )
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Tagged:
    """A `!name:` or `!new:` of a preset, before an object is made of it."""

    tag: str
    path: str  # what it names, e.g. sb_prune.HardConcrete
    arguments: dict

    def build(self, where):
        """The class, function or object, as HyperPyYAML would make it."""
        named = pydoc.locate(self.path)
        arguments = {
            key: _built(value, f"{where}: {key}")
            for key, value in self.arguments.items()
        }
        if self.tag == "!new:":  # the block checks those of `!name:`
            check_arguments(named, arguments, where)
            return named(**arguments)
        return functools.partial(named, **arguments) if arguments else named


def _tree(name):
    """What a preset says, its classes and functions as `_Tagged`."""
    return yaml.load(preset_text(name), Loader=_PresetLoader)


class _PresetLoader(yaml.SafeLoader):
    """Reads a preset without making its objects.

    HyperPyYAML would make them before their arguments can be replaced, and
    it is in the midst of the recipe's own YAML when it calls `preset`.
    """


def _read_tagged(tag):
    def read(loader, path, node):
        has_arguments = isinstance(node, yaml.MappingNode)
        arguments = (
            loader.construct_mapping(node, True) if has_arguments else {}
        )
        return _Tagged(tag, path, arguments)

    return read


for _tag in ("!name:", "!new:"):
    _PresetLoader.add_multi_constructor(_tag, _read_tagged(_tag))


def _replaced(block, overrides):
    """A block or arguments, with some keys replaced."""
    changed = dict(block)
    for key, value in overrides.items():
        old = block.get(key)
        if isinstance(old, _Tagged) and isinstance(value, Mapping):
            value = replace(old, arguments=_replaced(old.arguments, value))
        changed[key] = value
    return changed


def _built(value, where):
    return value.build(where) if isinstance(value, _Tagged) else value


def _summary(name):
    """The first line of a preset's banner, without `# Method:`."""
    return preset_text(name).splitlines()[1].partition(": ")[2]


def main(arguments=None):
    """Lists the presets, or prints one.

    Arguments
    ---------
    arguments : list of str, optional
        Of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.presets",
        description="Lists the presets that a recipe's YAML can take by name, "
        "or prints one.",
    )
    parser.add_argument("name", nargs="?", help="of the preset to print")
    name = parser.parse_args(arguments).name
    if name is None:
        for name in preset_names():
            print(f"{name:20} {_summary(name)}")
        return
    try:
        print(preset_text(name), end="")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
