"""Pictures of a pruning run: what it kept, and its curves over the epochs."""

import re
from collections import defaultdict
from contextlib import suppress
from itertools import cycle, product
from pathlib import Path

import numpy as np

from sb_prune.declare.tables import column_names

# colours of Okabe and Ito, which colour-blind readers can tell apart; the lines
# get thinner one after another, since the curves often cover one another
CURVES = {
    "target": {"color": "#56B4E9", "linewidth": 7, "alpha": 0.5},
    "expected": {"color": "#E69F00", "linewidth": 3},
    "realised": {"color": "#000000", "linewidth": 1, "marker": "."},
}
DASHES = ("solid", "dashed", "dotted", "dashdot")  # of groups of a budget
MARKERS = "osD^v"
GONE_COLOUR = "#D9D9D9"
LABELS = [
    {"color": colour}
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
]


def _figure(*args, **kwargs):
    """Makes a matplotlib Figure; without pictures it is never imported."""
    from matplotlib.figure import Figure

    return Figure(*args, **kwargs)


def _whole_numbers():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def draw_structure(path, units):
    """Draws the fraction kept of each kind in each layer, as a heat map.

    Arguments
    ---------
    path : str or file
        PNG to write.
    units : dict
        From `sb_prune.declare.tables.kept_units`.
    """
    columns, layers = column_names(units), list(units)
    fractions = np.full((len(layers), len(columns)), np.nan)
    figure = _figure(
        (2.5 + 1.6 * len(columns), 1.8 + 0.42 * len(layers)),
        layout="constrained",
    )
    axes = figure.subplots()
    axes.set_facecolor(GONE_COLOUR)
    for row, layer in enumerate(layers):
        for column, (kept, everything) in units[layer].items():
            place = columns.index(column)
            fraction = kept / everything
            if kept:
                fractions[row, place] = fraction
            axes.text(
                place,
                row,
                f"{kept} / {everything}" if kept else "gone",
                color="white" if 0 < fraction < 0.5 else "black",
                ha="center",
                va="center",
            )
    # cividis rises evenly in brightness and suits colour-blind readers
    image = axes.imshow(fractions, "cividis", vmin=0, vmax=1, aspect="auto")
    labels = [column.replace(".", "\n") for column in columns]
    axes.set_xticks(range(len(columns)), labels)
    axes.set_yticks(range(len(layers)), layers)
    axes.invert_yaxis()
    axes.set(
        xlabel="what can be pruned",
        ylabel="layer, first at the bottom",
        title="Units kept / all",
    )
    figure.colorbar(image, label="fraction kept")
    figure.savefig(path, dpi=120, format="png")


def pareto_front(points):
    """Which points are not worse in both than another.

    Arguments
    ---------
    points : dict
        Name -> (cost, error), of which less is better.

    Returns
    -------
    list of str
        From the cheapest to the dearest.

    Example
    -------
    >>> pareto_front({"a": (1, 9), "b": (2, 9), "c": (3, 5), "d": (4, 6)})
    ['a', 'c']
    """
    front, best = [], float("inf")
    for name, (_, error) in sorted(points.items(), key=lambda item: item[1]):
        if error < best:
            front.append(name)
            best = error
    return front


def draw_pareto(path, points, cost, error):
    """Draws errors with intervals against a cost, and the Pareto front.

    Arguments
    ---------
    path : str or file
        SVG to write.
    points : dict
        Name -> (cost, error, lower, upper bound of the error).
    cost, error : str
        Labels of the axes.
    """
    from matplotlib import rc_context

    figure = _figure((4.8, 4.0), layout="constrained")
    axes = figure.subplots()
    front = pareto_front({n: point[:2] for n, point in points.items()})
    axes.plot(*zip(*(points[n][:2] for n in front)), color="#999999", zorder=1)
    handles, styles = [], cycle(product(MARKERS, LABELS))
    for (x, y, low, high), (marker, style) in zip(points.values(), styles):
        bars = [[max(y - low, 0)], [max(high - y, 0)]]
        options = {"fmt": marker, "capsize": 3, "zorder": 2, **style}
        handles.append(axes.errorbar(x, y, bars, **options))
    dearest = max(x for x, *_ in points.values())
    axes.set(xlabel=cost, ylabel=error, xlim=(0, 1.1 * dearest))
    axes.grid(alpha=0.3)
    names = [name.replace("$", r"\$") for name in points]  # no mathematics
    figure.legend(
        handles, names, loc="outside lower center", ncols=2, fontsize=8
    )
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sb_prune"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def read_log(path):
    """Reads the curves in the log of SpeechBrain's `FileTrainLogger`.

    Arguments
    ---------
    path : str
        A train_log.txt. If it has an epoch twice, the later entry counts.

    Returns
    -------
    dict
        Name of a curve, e.g. `valid WER` -> {epoch -> value}.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train_log.txt"
    >>> _ = path.write_text(
    ...     "epoch: 1 - train target_sparsity: 1.5e-01\\n"
    ...     "epoch: 1, lr: 1.50e-03 - train loss: 2.67 - valid WER: 4.24\\n"
    ... )
    >>> read_log(path)["train target_sparsity"]
    {1: 0.15}
    >>> read_log(path)["valid WER"]
    {1: 4.24}
    """
    curves = defaultdict(dict)
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        epoch = re.match(r"epoch: (\d+)\b", line)
        if not epoch:
            continue
        for name, value in re.findall(
            r"((?:train|valid) \S+): ([^\s,]+)", line
        ):
            with suppress(ValueError):  # whatever else a recipe logs
                curves[name][int(epoch[1])] = float(value)
    return dict(curves)


def draw_curves(path, curves):
    """Draws sparsity and word error rate over the epochs.

    Arguments
    ---------
    path : str
        PNG file to write.
    curves : dict
        From `read_log`.

    Returns
    -------
    bool
        False if there are no curves of either, so that nothing was drawn.
    """
    sparsity = {
        name.removeprefix("train "): points
        for name, points in curves.items()
        if re.match(rf"train ({'|'.join(CURVES)})_sparsity", name)
    }
    errors = curves.get("valid WER", {})
    if not sparsity and not errors:
        return False
    figure = _figure((7, 5.5), layout="constrained")
    panels = bool(sparsity) + bool(errors)
    every = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    if errors:
        every[-1].plot(*_xy(errors), color="#D55E00", marker="o")
        every[-1].set(ylabel="valid WER (%)")
        every[-1].set_ylim(bottom=0)
    if sparsity:
        top, groups = every[0], {}
        for name, points in sparsity.items():
            kind, _, group = name.partition("_sparsity")
            dashes = DASHES[groups.setdefault(group, len(groups)) % len(DASHES)]
            label = kind + group
            style = {"label": label, "linestyle": dashes, **CURVES[kind]}
            top.plot(*_xy(points), **style)
        top.set(ylabel="sparsity of what is counted", ylim=(0, 1))
        top.legend(loc="lower right")
        cut = max(max(points) for points in sparsity.values()) + 0.5
        for axes in every:
            axes.axvline(cut, color="dimgrey")
        top.text(cut, 0.97, "pruned  ", ha="right", va="top")
        top.text(cut, 0.97, "  cut, fine-tuned", va="top")
    every[-1].set(xlabel="epoch")
    every[-1].xaxis.set_major_locator(_whole_numbers())
    for axes in every:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True


def draw_layers(path, choice):
    """Draws the score of each layer and which layers a criterion removed.

    Arguments
    ---------
    path : str
        PNG file to write.
    choice : dict
        As `LayerSettings` writes it, with a curve for each kind of label.
    """
    figure = _figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    layers = len(choice["keep"])
    for curve, (label, found) in zip(cycle(LABELS), choice["curves"].items()):
        scores = np.array(found["scores"])
        at = np.arange(layers + 1 - len(scores), layers + 1)
        axes.plot(at, scores, marker="o", label=label, **curve)
        if found["errors"]:
            error = np.array(found["errors"])
            axes.fill_between(
                at, scores - error, scores + error, alpha=0.2, **curve
            )
    kept = [i for i, stays in enumerate(choice["keep"], start=1) if stays]
    gone = [i for i in range(1, layers + 1) if i not in kept]
    for i in gone:
        axes.axvspan(i - 0.5, i + 0.5, color=GONE_COLOUR, zorder=0)
    axes.set(
        xlabel="layer (0: what enters the first; grey: left out)",
        ylabel="score",
        title=f"{choice['criterion']}: {len(kept)} of {layers} layers stay",
        xlim=(-0.5, layers + 0.5),
    )
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _xy(points):
    epochs = sorted(points)
    return epochs, [points[epoch] for epoch in epochs]
