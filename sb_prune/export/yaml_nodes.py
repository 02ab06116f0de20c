"""Helpers to read and make the nodes of a HyperPyYAML document."""

import re
from dataclasses import fields
from functools import partial

from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.tag import Tag

from sb_prune.support.names import public_name


def tag_of(node):
    """HyperPyYAML tag of a node, e.g. `!ref`, or an empty string."""
    return getattr(getattr(node, "tag", None), "value", None) or ""


def tagged(tag, **items):
    """Makes a mapping with a HyperPyYAML tag."""
    node = CommentedMap(items)
    node.yaml_set_ctag(Tag(suffix=tag))
    return node


def reference(entry):
    """Makes a scalar that refers to an entry: `!ref <entry>`."""
    return TaggedScalar(f"<{entry}>", tag=Tag(suffix="!ref"))


def references(node):
    """Collects the keys that a node and those inside it refer to."""
    if isinstance(node, dict):
        return set().union(*map(references, node.values()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    if tag_of(node) not in ("!ref", "!copy"):
        return set()
    return set(re.findall(r"<(\w+)", node.value))


def named(value):
    """Writes a callable as a `!name:` node with its arguments.

    Arguments
    ---------
    value : object
        A function, class or partial of one, or a list of them. Other values
        are returned as they are.

    Returns
    -------
    object
    """
    if isinstance(value, list):
        return [named(item) for item in value]
    if not callable(value):
        return value
    if not isinstance(value, partial):
        value = partial(value)
    arguments = {key: named(item) for key, item in value.keywords.items()}
    return tagged(f"!name:{public_name(value.func)}", **arguments)


def written_edit(edit):
    """Writes an edit as a `!new:` node; arguments with default values go.

    Arguments
    ---------
    edit : Edit

    Returns
    -------
    CommentedMap
    """
    arguments = {
        f.name: named(getattr(edit, f.name))
        for f in fields(edit)
        if getattr(edit, f.name) != f.default
    }
    return tagged(f"!new:{public_name(type(edit))}", **arguments)


def factory_of(stock):
    """Turns a node `!new:Stock ...` into `!name:Stock ...`, in place."""
    stock.yaml_set_ctag(Tag(suffix=tag_of(stock).replace("!new:", "!name:")))
    return stock
