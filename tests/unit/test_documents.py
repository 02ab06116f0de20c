"""What the Markdown pages say is so: links, names, figures, YAML, Python."""

import configparser
import importlib
import importlib.util
import inspect
import json
import pydoc
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import speechbrain as sb
import yaml
from documents import PAGES, ROOT, blocks, commands, name_of, prose
from hyperpyyaml import load_hyperpyyaml

import sb_prune
from sb_prune import pruned

README = ROOT / "README.md"
every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)

# Languages of fenced blocks, each of which something checks, but for the last.
LANGUAGES = {
    "bash",  # tests/integration/test_document_commands.py runs them
    "diff",
    "python",
    "yaml",
    "{eval-rst}",  # Sphinx
    "{toctree}",  # Sphinx
    "bibtex",
    "text",
}


def test_readme_fits_on_a_few_screens():
    assert len(README.read_text().splitlines()) <= 220


@every_page
def test_blocks_have_a_language_that_is_checked(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES


# --------------------------------------------------------------------- links


def anchor(heading):
    """The anchor that GitHub and Sphinx give a heading."""
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def anchors(page):
    """All anchors of a page."""
    return {anchor(h) for h in re.findall(r"^#+ (.*)", prose(page), re.M)}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+://", target):
            continue
        path, _, heading = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if heading:
            assert heading in anchors(there), target


def test_headings_have_the_anchors_of_github():
    assert anchor("How many layers?") == "how-many-layers"
    assert anchor("A gate, a score, a schedule") == "a-gate-a-score-a-schedule"


def test_every_page_can_be_reached_from_the_readme():
    seen, todo = set(), [README]
    while todo:
        page = todo.pop()
        seen.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)", prose(page)):
            there = (page.parent / target).resolve()
            if there not in seen and there in PAGES:
                todo.append(there)
    assert seen == {*PAGES}


# --------------------------------------------------------------------- names


def test_the_api_lists_every_public_name():
    listed = set(re.findall(r"^   (sb_prune\.\S+)$", api(), re.M))
    rooms = [sb_prune, importlib.import_module("sb_prune.depth")]
    for room in rooms:
        for name in room.__all__:
            assert f"{room.__name__}.{name}" in listed
    for name in listed:
        assert pydoc.locate(name).__doc__, name


def api():
    return (ROOT / "docs/api.md").read_text()


@every_page
def test_names_in_code_exist(page):
    for name in re.findall(r"`(sb_prune(?:\.\w+)+)`", prose(page)):
        assert pydoc.locate(name) is not None, name
    for name in re.findall(r"python -m (sb_prune[.\w]*)", page.read_text()):
        assert importlib.util.find_spec(name), name
    for name in re.findall(r"`(\w+_structures)`", prose(page)):
        assert hasattr(sb_prune, name), name


@every_page
def test_paths_in_code_exist(page):
    for path in re.findall(r"`((?:sb_prune|tests|docs)/[\w./]+)`", prose(page)):
        assert (ROOT / path).exists() or path == "docs/build", path


@every_page
def test_extras_exist(page):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for named in re.findall(
        r'pip install "?(?:\.|sb_prune)\[(.*?)\]', page.read_text()
    ):
        assert set(named.split(",")) <= set(extras), named
    for file in re.findall(r"pip install -r (\S+?)`", page.read_text()):
        assert (page.parent / file).is_file(), file


@every_page
def test_make_knows_its_targets(page):
    named = re.findall(r"`make ([\w-]+)`", prose(page))
    named += [line[5:] for line in commands(page) if line.startswith("make ")]
    for target in sorted(set(named)):
        assert_make_can(target.split())


def assert_make_can(words):
    """Whether what `make` would run is there."""
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for script in re.findall(r"\S+\.py\b", done.stdout):
        assert (ROOT / script).is_file(), script


@every_page
def test_pytest_is_given_paths_that_exist(page):
    for line in commands(page):
        if line.startswith(".venv/bin/python -m pytest "):
            assert (ROOT / line.split()[3]).exists(), line
        if line.startswith("python tests/benchmarks/"):
            assert (ROOT / line.split()[1]).exists(), line
        if line.startswith("pip install "):
            assert line == "pip install ."


def test_presets_are_all_described():
    from sb_prune.presets import preset_names

    table = (ROOT / "docs/recipes.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == {*preset_names()}


# ------------------------------------------------------------------- figures

TABLES = {
    "conformer_methods": "docs/results/conformer_methods.md",
    "convexity_depth": "docs/results/convexity_depth.md",
    "demo_twice": "docs/results/pruned_twice.md",
    "headline": "recipes/LibriSpeech/ASR/transformer/README.md",
    "hj_variants": "docs/results/hj_variants.md",
    "real_convexity": "docs/results/whisper_depth.md",
    "task_agnostic": "docs/results/task_agnostic.md",
    "whisper_librispeech": "docs/results/whisper.md",
}
SECOND_PAGES = {"whisper_librispeech": "docs/results/whisper_cut.md"}
CELLS = sorted(
    path
    for path in (ROOT / "tests/benchmarks").glob("*.json")
    if path.stem != "speechbrain_yamls"  # whose page is a file of its own
)


def texts_of(stem):
    """What the pages of a benchmark say."""
    pages = [
        tables[stem] for tables in (TABLES, SECOND_PAGES) if stem in tables
    ]
    return [(ROOT / page).read_text() for page in pages]


@pytest.fixture
def benchmark_module(monkeypatch):
    """Function: imports a benchmark as if it were run as a script."""
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    return importlib.import_module


@pytest.mark.parametrize("path", CELLS, ids=lambda path: path.stem)
def test_tables_are_those_of_the_benchmarks(path, benchmark_module):
    benchmark = benchmark_module(path.stem)
    summary = benchmark.summarise(json.loads(path.read_text()))
    for table in benchmark.as_markdown(summary).split("\n\n"):
        assert any(table in text for text in texts_of(path.stem))


def test_the_readme_has_figures_of_the_benchmark(benchmark_module):
    benchmark = benchmark_module("whisper_librispeech")
    summary = benchmark.summarise(json.loads(benchmark.TABLE.read_text()))
    assert benchmark.for_readme(summary) in README.read_text()


def test_the_page_of_speechbrain_recipes_is_that_of_its_benchmark(
    benchmark_module,
):
    benchmark = benchmark_module("speechbrain_yamls")
    found = json.loads(benchmark.FOUND.read_text(encoding="utf-8"))
    page = benchmark.TABLE.read_text(encoding="utf-8")
    assert page == benchmark.table_of(found)


def test_pictures_are_those_of_the_tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    pictures = importlib.import_module("pictures")
    drawn = {path.stem for path in pictures.FOLDER.glob("*.svg")}
    assert drawn == {*pictures.PICTURES}
    for name, (table, *_) in pictures.PICTURES.items():
        picture = (pictures.FOLDER / f"{name}.svg").read_text()
        assert pictures.digest_of(table) in picture, "run `make pictures`"
        texts = texts_of(table.stem)
        assert any(f"]({name}.svg)" in text for text in texts)


@pytest.mark.parametrize(
    "name, curves",
    [
        ("whisper", ["final", "layers"]),
        ("whisper_depth", ["words", "speakers"]),
    ],
)
def test_a_picture_can_be_drawn_again(name, curves, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "docs")
    picture = importlib.import_module("pictures").draw(name, tmp_path)
    assert all(f">{curve}</text>" in picture.read_text() for curve in curves)


# ---------------------------------------------------------------- YAML, diff


class Recipe(sb.Brain):
    """A recipe's Brain with nothing in it."""

    def compute_objectives(self, predictions, batch, stage):
        """No loss."""


KEYS = "output_folder: results\nsave_folder: results/save\n"


def check_yaml(text):
    """Loads a block as a recipe's YAML would be, and makes what it describes.

    Objects other than pruning blocks need files that are not here: only
    their classes and arguments are looked at.
    """
    entry = r"^\w+: !(?:new|name):(\S+)\n((?:    .*\n)*)"
    tagged = re.findall(entry, text, re.M)
    for name, arguments in tagged:
        known = inspect.signature(pydoc.locate(name))
        plain = re.sub(r": !.*", ": 0", textwrap.dedent(arguments))
        known.bind_partial(**yaml.safe_load(plain))
    if tagged:
        return {}
    hparams = load_hyperpyyaml(KEYS + text)
    brain = pruned(Recipe)(hparams=hparams, run_opts={"device": "cpu"})
    assert brain.pruning.has_phases
    return hparams


def after_diff(text):
    """What a diff block leaves."""
    lines = text.splitlines(keepends=True)
    return "".join(line[1:] for line in lines if line[0] in "+ ")


@every_page
def test_yaml_of_the_page_loads(page):
    for block in blocks(page, "yaml"):
        check_yaml(block.text)


def test_a_wrong_yaml_is_noticed():
    with pytest.raises(ValueError, match="straight_trough"):
        check_yaml(
            "pruning: !apply:sb_prune.preset\n    name: conformer_l0\n"
            "    gates: {straight_trough: True}\n"
        )
    with pytest.raises(TypeError, match="remove"):
        check_yaml("layers: !new:sb_prune.depth.LastLayers\n    remove: 4\n")


def test_diffs_of_the_readme_are_what_a_recipe_has():
    """The three edits, line by line."""
    edits, block, swap = (b.text for b in blocks(README, "diff"))
    recipe = ROOT / "recipes/LibriSpeech/ASR/transformer"
    train = (recipe / "train.py").read_text()
    for line in edits.splitlines():
        if line.startswith("+") and line.strip("+ "):
            assert line[1:] in train
        if line.startswith("-"):
            assert line[1:] not in train
    pruning, _, normalize = block.partition("\n\n")
    written = check_yaml(after_diff(f"{pruning}\n"))["pruning"]
    with open(recipe / "hparams/prune.yaml") as file:
        folders = {"data_folder": "data", "dense_folder": "results/train/1234"}
        hparams = load_hyperpyyaml(file, folders)
    assert written.keys() <= hparams["pruning"].keys()
    for key in ("start_from", "start_min_key", "inference", "target"):
        assert written[key] == hparams["pruning"][key]
    assert "update_until_epoch: 1" in after_diff(normalize)
    for text in (normalize, swap):
        check_yaml(after_diff(text))


# -------------------------------------------------------------------- Python


@pytest.mark.parametrize(
    "page", ["docs/extend.md", "docs/recipes.md"], ids=lambda page: page
)
def test_python_of_the_page_runs(page):
    """From top to bottom, as one program."""
    code = "\n".join(b.text for b in blocks(ROOT / page, "python"))
    assert code
    exec(compile(code, page, "exec"), {"__name__": Path(page).stem})  # noqa: S102
