"""What an export folder holds, what it costs, and how fast it runs.

> python -m sb_prune.report results/demo_prune/1234/export

prints a table per layer and the totals, and draws `structure.png` and, where
the run's train log lies beside the folder, `curves.png` into it.
"""

import argparse
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.interfaces import Pretrained
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sb_prune.cost import mac_cost, parameter_cost
from sb_prune.exactness import record_calls
from sb_prune.plan import Plan

BUILDER = "!apply:sb_prune.export.build_cut"


class Encoder(Pretrained):
    """Any export's `encoder`, from waveforms to its output."""

    MODULES_NEEDED = ["encoder"]

    def forward(self, wavs):
        """Encodes whole waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples)

        Returns
        -------
        torch.Tensor
            The encoder's output.
        """
        lengths = torch.ones(len(wavs), device=wavs.device)
        return self.mods.encoder(wavs, lengths)


def load_encoder(folder):
    """Loads an export with SpeechBrain's own machinery.

    Arguments
    ---------
    folder : Path

    Returns
    -------
    Encoder
    """
    with tempfile.TemporaryDirectory() as saved:
        return Encoder.from_hparams(source=str(folder), savedir=saved)


def load_dense_declaration(folder):
    """The plan of an export and the declaration it was made for.

    Arguments
    ---------
    folder : Path
        With the `hyperparams.yaml` that `export_model` wrote.

    Returns
    -------
    declaration : Declaration
        Of the dense model, on the meta device.
    plan : Plan
        What was kept.

    Raises
    ------
    ValueError
        If the folder is no export.
    """
    path = Path(folder) / "hyperparams.yaml"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no hyperparams.yaml; name an export folder, e.g. "
            "results/demo_prune/1234/export"
        )
    document = ruamel.yaml.YAML().load(path)
    builders = [
        node
        for node in document.values()
        if getattr(getattr(node, "tag", None), "value", None) == BUILDER
    ]
    if not builders:
        raise ValueError(f"{path} holds no pruned module; name an export")
    node = builders[0]
    # keep the document's scalars: the factory refers to them
    document = {k: v for k, v in document.items() if not hasattr(v, "tag")}
    document["factory"], document["structures"] = (
        node["factory"],
        node["structures"],
    )
    text = io.StringIO()
    ruamel.yaml.YAML().dump(document, text)
    parts = load_hyperpyyaml(text.getvalue())
    with torch.device("meta"):
        root = parts["factory"]()
    plan = Plan.from_dict(dict(node["plan"]))
    declaration = parts["structures"](root)
    plan.check(declaration)
    return declaration, plan


def structure_table(declaration, plan):
    """Kept and all units of each leaf structure, a row per layer.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model.
    plan : Plan
        What was kept.

    Returns
    -------
    dict
        Layer name -> {name below the layer: (kept, all)}; kept is 0 where
        the module or layer is gone.
    """
    table = {layer: {} for layer in declaration.layers}
    for structure in declaration.structures:
        if not structure.is_leaf:
            continue
        layer = max(
            (n for n in table if structure.name.startswith(n + ".")), key=len
        )
        kept = int(plan.keep[structure.name].sum())
        kept *= plan.is_open(structure, declaration)
        name = structure.name.removeprefix(layer + ".")
        table[layer][name] = (kept, structure.units)
    return table


def costs(declaration, plan, frames):
    """Parameters and MACs of the scope, dense and cut.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model.
    plan : Plan
        What was kept.
    frames : int
        Length at the input of the scope for which MACs count.

    Returns
    -------
    dict
        Name -> (now, dense).
    """
    counts = plan.kept_counts(declaration)
    found = {}
    for name, cost in {
        "parameters": parameter_cost(declaration),
        "MACs": mac_cost(declaration, frames),
    }.items():
        found[name] = (float(cost.of_kept(counts)), cost.dense())
    return found


@torch.no_grad()
def scope_frames(encoder, declaration, seconds):
    """Frames that reach the pruned part for some seconds of audio.

    Arguments
    ---------
    encoder : Encoder
        The loaded export.
    declaration : Declaration
        Of its dense model.
    seconds : float
        Length of the audio.

    Returns
    -------
    int
    """
    name, kind = declaration.scope[0], type(declaration.root)
    root = next(m for m in encoder.modules() if isinstance(m, kind))
    calls = record_calls(
        [root.get_submodule(name)], lambda: encoder(_noise(seconds))
    )
    source = next(iter([*calls[0].args, *calls[0].kwargs.values()]))
    return source.shape[1]


@torch.no_grad()
def macs_per_second(encoder, seconds=10):
    """Multiply-accumulates per second of audio, counted operation by operation.

    Arguments
    ---------
    encoder : callable
        (1, samples) at 16 kHz -> anything.
    seconds : float
        Length of the audio; attention makes MACs grow with it.

    Returns
    -------
    float
        The counter misses what is no matrix product or convolution.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        encoder(_noise(seconds))
    return counter.get_total_flops() / 2 / seconds


@torch.no_grad()
def real_time_factors(encoders, seconds=10, repeats=7):
    """Processing time per second of audio, timed in alternation.

    Arguments
    ---------
    encoders : dict
        Name -> callable, (1, samples) at 16 kHz -> anything.
    seconds : float
        Length of the audio.
    repeats : int
        Rounds; the median counts, the first is a warm-up.

    Returns
    -------
    dict
        Name -> seconds of processing per second of audio.
    """
    wavs = _noise(seconds)
    times = {name: [] for name in encoders}
    for _ in range(repeats + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder(wavs)
            times[name].append(time.perf_counter() - start)
    return {
        name: statistics.median(found[1:]) / seconds
        for name, found in times.items()
    }


def _noise(seconds):
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(1, int(16000 * seconds), generator=generator)


_PEAK = """
import resource, sys, torch
from sb_prune.report import _noise, load_encoder
encoder = load_encoder(sys.argv[1])
with torch.no_grad():
    encoder(_noise(float(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_memory(folder, seconds=10):
    """Peak resident memory of loading and one forward, in a new process.

    Arguments
    ---------
    folder : Path
        An export.
    seconds : float
        Length of the audio.

    Returns
    -------
    float
        MiB, the interpreter and its libraries included.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(folder), str(seconds)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def format_table(rows):
    """Rows of cells as aligned text, the first row as a heading.

    Arguments
    ---------
    rows : list of list
        Cells of any type.

    Returns
    -------
    str

    Example
    -------
    >>> print(format_table([["layer", "heads"], [0, "3/4"]]))
    layer  heads
    0        3/4
    """
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [c.rjust(w) for c, w in zip(others, widths[1:])]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def layer_rows(table):
    """`structure_table` as rows for `format_table`.

    Arguments
    ---------
    table : dict

    Returns
    -------
    list of list of str
        A heading, a row per layer and the sums; `-` where all is gone.
    """
    names = list(dict.fromkeys(n for row in table.values() for n in row))
    sums = {
        name: tuple(map(sum, zip(*(row[name] for row in table.values()))))
        for name in names
    }
    rows = [["layer", *names]]
    for layer, row in {**table, "all": sums}.items():
        cells = [row.get(name, (0, 0)) for name in names]
        rows.append([layer, *(f"{k}/{n}" if k else "-" for k, n in cells)])
    return rows


def plot_structure(table, path):
    """Draws the kept share of each structure, a row per layer.

    Arguments
    ---------
    table : dict
        From `structure_table`.
    path : Path
        PNG to write.
    """
    plt = _pyplot()
    names = list(dict.fromkeys(n for row in table.values() for n in row))
    figure, axes = plt.subplots(
        figsize=(1.5 + 1.6 * len(names), 1.6 + 0.4 * len(table))
    )
    shares = [[row[n][0] / row[n][1] for n in names] for row in table.values()]
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(table.values()):
        for x, name in enumerate(names):
            kept, units = row[name]
            colour = "black" if kept > 0.5 * units else "white"
            text = f"{kept}/{units}" if kept else "cut"
            axes.text(x, y, text, ha="center", va="center", color=colour)
    short = [name.replace(".", "\n") for name in names]
    axes.set_xticks(range(len(names)), short, fontsize=8)
    axes.set_yticks(range(len(table)), range(len(table)))
    axes.set_ylabel("layer")
    figure.colorbar(image, label="share kept")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def read_log(path):
    """Curves of a train log written by SpeechBrain's FileTrainLogger.

    Arguments
    ---------
    path : Path

    Returns
    -------
    dict
        Quantity -> {epoch: value}.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w+") as file:
    ...     _ = file.write("epoch: 1, lr: 1e-3 - valid WER: 4.24")
    ...     file.flush()
    ...     read_log(file.name)["valid WER"]
    {1: 4.24}
    """
    curves = {}
    for line in Path(path).read_text("utf-8").splitlines():
        numbers = dict(re.findall(r"([\w \[\].]+): ([-+.e\d]+)", line))
        numbers = {k.strip(): float(v) for k, v in numbers.items()}
        epoch = numbers.pop("epoch", None)
        if epoch is not None:
            for name, value in numbers.items():
                curves.setdefault(name, {})[int(epoch)] = value
    return curves


def plot_curves(curves, path):
    """Draws sparsity and word error rate over the epochs.

    Arguments
    ---------
    curves : dict
        From `read_log`.
    path : Path
        PNG to write.
    """
    plt = _pyplot()
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 5))
    styles = {"target": "--", "expected": ":", "realised": "-"}
    for name, style in styles.items():
        for key, curve in curves.items():
            if key.startswith(f"train {name}_sparsity"):
                label = key.removeprefix("train ").replace("_", " ")
                above.plot(*zip(*curve.items()), style, marker=".", label=label)
    above.set_ylabel("sparsity")
    above.set_ylim(0, 1)
    above.legend()
    errors = curves.get("valid WER", {})
    if errors:
        below.plot(*zip(*errors.items()), marker=".", color="C3")
    below.set_ylabel("valid WER (%)")
    below.set_xlabel("epoch (prune, then fine-tune)")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _pyplot():
    import matplotlib  # slow to import, and only pictures need it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def report(folder, seconds=10, log=None):
    """Prints the report of an export and draws its pictures.

    Arguments
    ---------
    folder : Path
        An export.
    seconds : float
        Length of the audio for MACs, speed and memory.
    log : Path, optional
        Train log; by default the one beside the folder, if there is one.

    Raises
    ------
    ValueError
        If the folder is no export, or damaged.
    """
    folder = Path(folder)
    declaration, plan = load_dense_declaration(folder)
    encoder = load_encoder(folder)
    table = structure_table(declaration, plan)
    print(format_table(layer_rows(table)), end="\n\n")
    total = sum(p.numel() for p in encoder.parameters())
    now, dense = costs(declaration, plan, 1)["parameters"]
    speed = real_time_factors({"": encoder}, seconds)[""]
    memory = peak_memory(folder, seconds)
    macs = macs_per_second(encoder, seconds)
    frames = scope_frames(encoder, declaration, seconds)
    cut_macs = [m / seconds for m in costs(declaration, plan, frames)["MACs"]]
    rows = [
        ["", "now", "dense"],
        ["pruned part, parameters", f"{now:,.0f}", f"{dense:,.0f}"],
        [
            "inference model, parameters",
            f"{total:,}",
            f"{total + dense - now:,.0f}",
        ],
        ["pruned part, MACs/s", *(f"{m:,.0f}" for m in cut_macs)],
        [
            "inference model, MACs/s",
            f"{macs:,.0f}",
            f"{macs + cut_macs[1] - cut_macs[0]:,.0f}",
        ],
        [
            f"real-time factor, {torch.get_num_threads()} threads",
            f"{speed:.4f}",
            "",
        ],
        ["peak memory, MiB", f"{memory:.0f}", ""],
    ]
    print(f"MACs and time per second of audio, on {seconds:g} s of it")
    print(format_table(rows))
    plot_structure(table, folder / "structure.png")
    log = Path(log) if log else folder.parent / "train_log.txt"
    if log.is_file():
        plot_curves(read_log(log), folder / "curves.png")


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m sb_prune.report"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    try:
        report(**vars(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
