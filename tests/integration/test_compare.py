"""Models side by side: the page that shows what each costs and hears."""

import html
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile
from matplotlib.image import imread
from tiny_export import make_export

from sb_prune.deploy import deploy
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.report.command import main
from sb_prune.report.compare import _chosen, compare, table, utterances
from sb_prune.report.page import render

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
NAMES = ["export", "other", "onnx"]
OTHER = {"encoder.layers.0.ffn_module1.units": "1 of 32: 3"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> folder of two exports, and one of them deployed."""
    folder = tmp_path_factory.mktemp("compare")
    found = {name: folder / name for name in NAMES}
    make_export(found["export"])
    make_export(found["other"], keep=OTHER)
    deploy(found["export"], found["onnx"])
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(scope="module")
def labels(corpus, tmp_path_factory):
    """A manifest of a few utterances, whose words no model hears."""
    path = tmp_path_factory.mktemp("labels") / "some.csv"
    paths = sorted(corpus.rglob("*.flac"))[:6]
    rows = [f"{n},{path},A <B> & C" for n, path in enumerate(paths)]
    path.write_text("\n".join(["ID,wav,wrd", *rows]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def compared(folders, labels):
    return compare(folders, utterances(None, labels, None), 4)


@pytest.fixture(scope="module")
def page(compared, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "compare.html"
    path.write_text(render(compared, "Three models"), encoding="utf-8")
    return path


def test_a_deployed_model_hears_what_its_source_hears(compared):
    export, other, onnx = compared.rows
    assert len(export.texts) == 4 and any(export.texts)
    assert onnx.texts == export.texts != other.texts
    assert numpy.array_equal(onnx.counts, export.counts)
    assert onnx.more_than(export) == (0, 0, 0)


def test_costs_are_those_of_each_model(compared):
    export, other, onnx = compared.rows
    for name in ("parameters", "macs"):
        assert onnx.facts[name] == export.facts[name]
    assert other.facts["parameters"] > export.facts["parameters"]
    assert [r.facts["runtime"] for r in compared.rows] == [
        "SpeechBrain",
        "SpeechBrain",
        "onnxruntime",
    ]
    assert export.memory > onnx.memory > 10  # the latter is without torch
    assert min(export.seconds + onnx.seconds) > 0
    assert export.facts["units"] and not onnx.facts["units"]


def test_table_has_a_row_for_each_model(compared):
    header, *rows = table(compared)
    assert [row[0] for row in rows] == NAMES
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0][-1] == "-"
    assert all(re.fullmatch(r"\S+ \(\S+ to \S+\)", r[-2]) for r in rows)


def test_page_is_one_small_file(page, compared):
    text = page.read_text("utf-8")
    assert page.stat().st_size < 3 * 2**20
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)  # no network
    assert text.count("<svg") == 3
    assert text.count("data:image/png") == 2  # of the exports
    assert all(name in text for name in (*NAMES, *compared.names))
    assert '<span class="D">' in text


def test_names_are_shown_as_they_are(compared):
    """Not as markup, mathematics, or not at all."""
    odd = ["_a<b>", "$x$", r"a & $\foo"]
    rows = [replace(row, name=n) for row, n in zip(compared.rows, odd)]
    names = ["<i>", *compared.names[1:]]
    text = render(replace(compared, rows=rows, names=names), "<title>")
    assert "<i>" not in text and "<b>" not in text
    for name in odd:
        shown = html.escape(name)
        assert text.count(f">{shown}<") >= 5  # two tables, three legends


@pytest.fixture(scope="module")
def browser():
    """A real browser, without a window."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium; `.ci/run` installs one")
    flags = ["--headless", "--no-sandbox", "--disable-gpu"]
    flags += ["--disable-dev-shm-usage", "--window-size=1280,1600"]

    def run(url, *options):
        return subprocess.run(
            [found, *flags, *options, url],
            capture_output=True,
            text=True,
            timeout=120,
        )

    if run("about:blank", "--dump-dom").returncode:
        pytest.skip(f"{found} does not start on this machine")

    def show(path, *options):
        done = run(path.resolve().as_uri(), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return show


def test_page_in_a_browser(page, browser, tmp_path):
    """It is drawn, nothing is cut off, and every picture is there."""
    script = (
        "<script>document.title = JSON.stringify({"
        "fits: document.documentElement.scrollWidth <= innerWidth,"
        "pictures: [...document.images].map(i => i.naturalWidth > 100),"
        "charts: [...document.querySelectorAll('svg')]"
        ".map(s => s.getBoundingClientRect().height > 200)})</script>"
    )
    copy = tmp_path / "page.html"
    text = page.read_text("utf-8")
    copy.write_text(text.replace("</body>", f"{script}</body>"))
    dom = browser(copy, "--dump-dom")
    expected = '{"fits":true,"pictures":[true,true],"charts":[true,true,true]}'
    assert f"<title>{expected}</title>" in dom
    picture = tmp_path / "page.png"
    browser(page, f"--screenshot={picture}")
    pixels = (255 * imread(picture)[..., :3]).round().astype(int)
    colours = numpy.unique(pixels.reshape(-1, 3), axis=0).tolist()
    # text, the first and the second model in the charts
    for colour in ((26, 26, 26), (0, 114, 178), (213, 94, 0)):
        assert list(colour) in colours


def test_command(folders, corpus, tmp_path, capsys):
    page = tmp_path / "page.html"
    main(
        [
            "--compare",
            folders["export"],
            folders["onnx"],
            f"--audio={corpus}",
            "--utterances=2",
            f"--output={page}",
        ]
    )
    printed = capsys.readouterr().out
    assert "| export |" in printed and "words unlike the first" in printed
    assert "There are no transcripts" in page.read_text("utf-8")


# ------------------------------------------------------------------ bad input


def test_a_folder_that_is_no_model_is_refused(tmp_path, labels):
    found = utterances(None, labels, None)
    with pytest.raises(DeployError, match=r"has no hyperparams\.yaml"):
        compare({"none": str(tmp_path)}, found, 1)


def test_without_words_there_is_nothing_to_compare(folders, tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, numpy.full(16000, 0.01), 16000)
    with pytest.raises(DeployError, match="not one word"):
        compare({"onnx": folders["onnx"]}, [(str(path), "...")], 1)


def test_what_not_all_hear_at_once_is_left_out(folders, tmp_path):
    paths = []
    for seconds in (1, 31):
        paths.append(tmp_path / f"{seconds}.wav")
        soundfile.write(paths[-1], numpy.zeros(16000 * seconds), 16000)
    found = [(str(path), "a") for path in paths]
    comparison = compare({"onnx": folders["onnx"]}, found, 9)
    assert comparison.names == ["1"] and comparison.too_long == 1
    with pytest.raises(DeployError, match="can be read is at most 30 s"):
        compare({"onnx": folders["onnx"]}, found[1:], 9)


def test_files_of_which_nothing_can_be_read_are_left_out(folders, tmp_path):
    for name, samples in (("empty", 0), ("one", 16000)):
        soundfile.write(tmp_path / f"{name}.wav", numpy.zeros(samples), 16000)
    (tmp_path / "._one.wav").write_bytes(b"of macOS")
    found = utterances(str(tmp_path), None, None)
    chosen, too_long, unreadable = _chosen(found, 30.0, 9)
    assert [Path(path).name for path, *_ in chosen] == ["one.wav"]
    assert (too_long, unreadable) == (0, 2)
    labelled = [(path, "a") for path, _ in found]
    with pytest.raises(DeployError, match="cannot be read"):
        compare({"onnx": folders["onnx"]}, labelled, 9)


def test_models_end_when_they_are_left_alone(folders):
    """The parent is killed, as by a scheduler."""
    code = (
        "import os, sys, signal\n"
        "from sb_prune.report.models import Process\n"
        "process = Process(sys.argv[1], 1)\n"
        "(child,) = process._pool._processes\n"
        "print(child, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, folders["onnx"]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        raise AssertionError("the model is still there")


def is_running(process):
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "a", "--output=nowhere/page.html"], "--output: nowhere"),
        (["--compare", "a/x", "b=a", "x=a", "b=c"], "two models are called b"),
        (["--compare", "a", "b"], "write --audio FOLDER or --labels CSV"),
        (["--compare", "a", "--audio=x", "--labels=y"], "or --labels CSV"),
        (["--compare", "a", "--audio=nowhere"], "has no audio files"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["--output=page.html", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--compare", "a", "b"],
        ["folder", "--compare", "a"],
        ["--compare", "a", "--output=x", "--threads=0"],
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
