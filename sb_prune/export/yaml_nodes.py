"""Nodes of a HyperPyYAML document: read, made, followed."""

import re
from functools import partial

from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.tag import Tag

import sb_prune


def tag_of(node):
    """The HyperPyYAML tag of a YAML node, or an empty string."""
    return getattr(getattr(node, "tag", None), "value", None) or ""


def tagged(tag, **items):
    """A mapping with a HyperPyYAML tag."""
    node = CommentedMap(items)
    node.yaml_set_ctag(Tag(suffix=tag))
    return node


def references(node):
    """Keys that a YAML node refers to."""
    if isinstance(node, dict):
        return set().union(*map(references, node.values()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    if tag_of(node) not in ("!ref", "!copy"):
        return set()
    return set(re.findall(r"<(\w+)", node.value))


def named(value):
    """A callable as a `!name:` with its arguments; what else is, as it is."""
    if isinstance(value, list):
        return [named(item) for item in value]
    if not callable(value):
        return value
    if not isinstance(value, partial):
        value = partial(value)
    arguments = {key: named(item) for key, item in value.keywords.items()}
    return tagged(f"!name:{_stable_name(value.func)}", **arguments)


def _stable_name(function):
    """The name that a file on disk may hold: of ours, the public one."""
    name = function.__name__
    if getattr(sb_prune, name, None) is function:
        return f"sb_prune.{name}"
    return f"{function.__module__}.{name}"


def factory_of(stock):
    """The node `!new:Stock ...` becomes `!name:Stock ...`."""
    stock.yaml_set_ctag(Tag(suffix=tag_of(stock).replace("!new:", "!name:")))
    return stock
