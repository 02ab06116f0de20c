"""Draws the pictures of docs/results from the tables of the benchmarks.

    make pictures

A picture holds the digest of its table; a test says which to draw again.
"""

import hashlib
import json
import sys
from itertools import cycle, product
from operator import itemgetter
from pathlib import Path

import matplotlib
import numpy
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sb_prune.report.pictures import LABELS, MARKERS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/benchmarks"))

import real_convexity  # noqa: E402
import whisper_librispeech  # noqa: E402

FOLDER = ROOT / "docs/results"
STYLES = [{"marker": m, **label} for m, label in product(MARKERS, LABELS)]
APART = ("once", "short")  # of which the text tells
USUAL = "utterance-2.0"  # the dense model, in the context of all others


def depth_of_whisper(figure, cells):
    """Convexity of each layer, with its standard error."""
    axes = figure.subplots()
    curves = real_convexity.summarise(cells)["curves"]
    for style, (name, curve) in zip(cycle(STYLES), curves.items()):
        layers = range(len(curve["scores"]))
        axes.errorbar(
            layers, curve["scores"], curve["errors"], label=name, **style
        )
    names = ["input", *map(str, layers[1:])]
    axes.set_xticks(layers, names)
    axes.set(xlabel="layer", ylabel="graph convexity", ylim=(0, 1.05))


def whisper(figure, cells):
    """Word errors on dev against parameters and MACs, a curve a method."""
    summary = whisper_librispeech.summarise(cells)
    dense, curves = summary["dense"], {}
    for method, rows in summary["table"].items():
        is_apart = method in (*APART, *whisper_librispeech.VARIED)
        if is_apart or method.startswith("cut:"):
            continue
        for size, row in rows.items():
            if {"dev", "params"} <= row.keys() and size not in dense:
                what = size.partition("-")[0]  # encoder, whole or english
                name = method if what == "encoder" else f"{method}, {what}"
                start = dense[what if what in dense else USUAL]
                curves.setdefault(name, [start]).append(row)
    costs = {
        "parameters, M": lambda row: row["params"] / 1e6,
        "GMACs for a second of speech": lambda row: row["gmacs_per_second"],
    }
    both = figure.subplots(1, 2, sharey=True)
    for axes, (label, cost) in zip(both, costs.items()):
        for style, (name, rows) in zip(cycle(STYLES), curves.items()):
            rates(axes, rows, cost, name, style)
        axes.set(xlabel=label, yscale="log")
        in_percent(axes)
    figure.axes[0].set_ylabel("dev WER, %")


def whisper_cut(figure, cells):
    """Word errors on dev just after the cut against what is gone."""
    summary = whisper_librispeech.summarise(cells)
    axes, sizes = figure.subplots(), summary["table"].items()
    curves = {n: rows for n, rows in sizes if n.startswith("cut:")}
    for style, (name, rows) in zip(cycle(STYLES), curves.items()):
        points = [{**summary["dense"][USUAL], "gone": 0}]
        for size, row in rows.items():
            points.append({**row, "gone": 100 * float(size.split("-")[1])})
        label = name.removeprefix("cut:")
        rates(axes, points, itemgetter("gone"), label, style)
    axes.set(xlabel="parameters of the encoder gone, %", yscale="log")
    in_percent(axes)
    axes.set_ylabel("dev WER, %, nothing learned")


def in_percent(axes):
    """Labels of rates on a logarithmic scale, with digits."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def rates(axes, rows, cost, name, style):
    """A curve of word error rates with their intervals."""
    points = sorted((cost(row), *row["dev"].values()) for row in rows)
    x, y, low, high = numpy.array(points).T
    bars = numpy.maximum([y - low, high - y], 0)
    axes.errorbar(x, y, bars, label=name, capsize=2, **style)


PICTURES = {  # name -> (table, how it is drawn, inches)
    "whisper": (whisper_librispeech.TABLE, whisper, (8.0, 4.4)),
    "whisper_cut": (whisper_librispeech.TABLE, whisper_cut, (5.6, 4.4)),
    "whisper_depth": (real_convexity.TABLE, depth_of_whisper, (5.6, 3.8)),
}


def digest_of(table):
    """What a picture holds of the table that it was drawn from."""
    return hashlib.sha256(table.read_bytes()).hexdigest()[:16]


def draw(name, folder=FOLDER):
    """Draws one picture.

    Arguments
    ---------
    name : str
    folder : Path
        Where NAME.svg goes.

    Returns
    -------
    Path
        The file.
    """
    table, draw_on, inches = PICTURES[name]
    figure = Figure(inches, layout="constrained")
    draw_on(figure, json.loads(table.read_text("utf-8")))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize=8
    )
    path = folder / f"{name}.svg"
    options = {"svg.fonttype": "none", "svg.hashsalt": "sb_prune"}
    about = {"Date": None, "Description": digest_of(table)}
    with matplotlib.rc_context(options):
        figure.savefig(path, metadata=about)
    return path


if __name__ == "__main__":
    for name in PICTURES:
        print(draw(name).relative_to(ROOT))
