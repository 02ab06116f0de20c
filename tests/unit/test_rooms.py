"""The rooms of the package: imports go down only, and there is no circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sb_prune

PACKAGE = Path(sb_prune.__file__).parent
TESTS = Path(__file__).parents[1]
# From the ground up; a room may import what stands in lines above its own,
# and itself.
FLOORS = [
    ["support"],
    ["declare", "recipe"],
    ["cut"],
    ["architectures", "students"],
    ["learn", "depth", "distillation"],
    ["export"],
    ["deploy", "lobes", "vocabulary"],
    ["report"],
    ["run"],
    ["brain", "presets"],
    ["demo"],
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def name_of(path):
    """sb_prune/learn/gates.py -> learn.gates; a room's __init__ -> learn"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    """Names, from below the package, that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("sb_prune."):
                yield name.removeprefix("sb_prune.")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {
    name: sorted(set(imports_of(path)) & FILES.keys())
    for name, path in FILES.items()
}


def upward(imports, floor):
    """(importer, imported) pairs that do not go down."""
    return [
        (name, imported)
        for name, found in imports.items()
        if name
        for imported in found
        if (here := name.split(".")[0]) != (there := imported.split(".")[0])
        and floor[there] >= floor[here]
    ]


def test_every_file_lives_in_a_room():
    rooms = {name.split(".")[0] for name in FILES if name}
    assert rooms <= FLOOR.keys()


def test_imports_go_down_only():
    assert upward(IMPORTS, FLOOR) == []


def test_an_import_that_goes_up_is_seen():
    assert upward({"cut.masking": ["run.checks"]}, FLOOR)
    assert upward({"depth.criteria": ["learn.gates"]}, FLOOR)
    assert not upward({"run.checks": ["run.phases", "cut"]}, FLOOR)


def test_no_two_files_import_each_other_in_a_circle():
    inside = {
        name: [i for i in found if i != name] for name, found in IMPORTS.items()
    }
    assert list(TopologicalSorter(inside).static_order())  # or a CycleError


def test_nothing_imports_the_demo():
    importers = {
        name
        for name, found in IMPORTS.items()
        if any(i.split(".")[0] == "demo" for i in found)
    }
    assert {name.split(".")[0] for name in importers} <= {"demo"}


def test_unit_tests_mirror_the_rooms():
    rooms = {name.split(".")[0] for name in FILES if "." in name}
    tests = Path(__file__).parent
    for room in rooms:
        assert list((tests / room).rglob("test_*.py")), room


def outgrown(source):
    """What is too large in a file of the run: its length, or a class."""
    lines = len(source.splitlines())
    if lines > 350:
        yield f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or node.name in YAML_BLOCKS:
            continue
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
        public = [m for m in methods if not m.name.startswith("_")]
        if len(public) > 8:
            yield f"{node.name} has {len(public)} public methods"
        for m in methods:
            given = m.args.posonlyargs + m.args.args + m.args.kwonlyargs
            if m.name == "__init__" and len(given) > 1 + 8:
                yield f"{node.name} takes {len(given) - 1} arguments"


# Their arguments are the keys of a YAML.
YAML_BLOCKS = ("PruningSettings", "LayerSettings")


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("run.")])
def test_a_run_has_small_parts(name):
    assert list(outgrown(FILES[name].read_text(encoding="utf-8"))) == []


def test_a_part_that_has_outgrown_its_place_is_seen():
    arguments = ", ".join(f"a{i}" for i in range(9))
    methods = "".join(f"    def m{i}(self): pass\n" for i in range(9))
    source = (
        f"class C:\n{methods}    def __init__(self, {arguments}): pass\n"
        + "\n" * 350
    )
    assert list(outgrown(source)) == [
        f"{len(source.splitlines())} lines",
        "C has 9 public methods",
        "C takes 9 arguments",
    ]
    assert not list(outgrown("class C:\n    def m(self): pass\n"))


@pytest.mark.parametrize("name", sb_prune.__all__)
def test_public_names_are_there_and_documented(name):
    assert getattr(sb_prune, name).__doc__


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'conformer'"):
        sb_prune.conformer  # noqa: B018


def loaded_after(statement):
    """Top-level packages that a fresh interpreter has imported then."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    return set(subprocess.check_output(command, text=True).split())


def test_the_package_imports_nothing_that_is_not_asked_for():
    loaded = loaded_after("import sb_prune")
    assert not loaded & {"torch", "matplotlib", "transformers"}


def test_a_run_needs_neither_matplotlib_nor_transformers():
    names = "PruningMixin, PruningSettings, LayerSettings, cut_, ExactBudget"
    loaded = loaded_after(f"from sb_prune import {names}")
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "transformers"}


def test_every_test_file_has_a_name_of_its_own():
    """pytest imports them by it, as they stand in no package."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) > 100
    assert sorted(set(names)) == sorted(names)
