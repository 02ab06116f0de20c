"""The report: right numbers from a folder, and clear words for bad ones."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from matplotlib.axes import Axes
from tiny_export import LAYER, SIZES, make_export

from sb_prune import conformer_structures, mac_cost, rebuild
from sb_prune.architectures.conformer import KINDS
from sb_prune.declare.plan import full_plan
from sb_prune.declare.tables import format_table, kept_units, structure_table
from sb_prune.export.lineage import size_table, unit_tables
from sb_prune.export.loading import ExportError, encoder_of, load_export
from sb_prune.report import command
from sb_prune.report.command import (
    _named,
    cost_table,
    main,
    measure_memory,
    write_report,
)
from sb_prune.report.pictures import draw_curves, draw_structure, read_log
from sb_prune.support.measure import count_parameters, measure_speed
from sb_prune.support.memory import forget_peak, resident_memory

PNG = b"\x89PNG"
LOG = (
    "epoch: 1 - train target_sparsity: 2.5e-01, "
    "train expected_sparsity: 2.4e-01, train realised_sparsity: 2.6e-01\n"
    "epoch: 1, lr: 1.50e-03 - train loss: 2.67 - valid loss: 1.02, "
    "valid WER: 4.24\n"
    "epoch: 2, lr: 1.50e-03 - train loss: 2.1 - valid WER: 3.5\n"
    "Epoch loaded: 2 - test loss: 1, test WER: 3\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The export folder and what was exported into it."""
    folder = tmp_path_factory.mktemp("made") / "export"
    return folder, make_export(folder)


@pytest.fixture
def export(made, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(made[0], tmp_path / "export")


# ------------------------------------------------------------------ numbers


def test_loads_what_was_exported(made):
    folder, exported = made
    loaded = load_export(folder)
    theirs = loaded.hparams["model"].state_dict()
    assert theirs.keys() == exported.hparams["model"].state_dict().keys()
    for name, tensor in exported.hparams["model"].state_dict().items():
        assert torch.equal(tensor, theirs[name])
    (step,) = loaded.steps
    assert step.plan.to_dict() == exported.plan.to_dict()
    assert step.declaration.by_name.keys() == (
        exported.declaration.by_name.keys()
    )


def test_structure_table(made):
    loaded = load_export(made[0])
    (step,) = loaded.steps
    header, *rows, totals = structure_table(step.declaration, step.plan)
    assert header == [
        "layer",
        "ffn_module1.units",
        "mha_layer.heads",
        "convolution_module.channels",
        "ffn_module2.units",
        "parameters",
    ]
    assert [row[:-1] for row in rows] == [
        [f"{LAYER}.0", "5/32", "3/4", "7/16", "32/32"],
        [f"{LAYER}.1", "32/32", "4/4", "16/16", "-"],
        [f"{LAYER}.2", "-", "-", "-", "-"],
    ]
    assert totals[:-1] == ["all layers", "37/96", "7/12", "23/48", "32/96"]
    layers = loaded.scope[0].layers
    for row, layer in zip(rows, layers):
        assert row[-1].startswith(f"{count_parameters([layer]):,}/")


@pytest.mark.parametrize("kind", KINDS)
def test_structure_table_of_one_kind(make_asr, kind):
    declaration = conformer_structures(make_asr(), kinds=[kind])
    header, *rows, totals = structure_table(declaration, full_plan(declaration))
    assert len(rows) == 2
    assert {len(row) for row in rows} == {len(header)}
    for cell in rows[0][1:] + totals[1:]:
        kept, everything = cell.split("/")
        assert kept == everything


def test_costs_are_the_real_ones(made):
    loaded = load_export(made[0])
    rows = {row[0]: row[1:] for row in cost_table(loaded, seconds=1)}
    number = {
        name: int(cells[0].replace(",", ""))
        for name, cells in rows.items()
        if name != "cost"
    }
    assert number["parameters, encoder"] == count_parameters(loaded.scope)
    assert number["parameters, whole model"] == count_parameters(
        [loaded.encoder]
    )
    dense = {name: int(rows[name][1].replace(",", "")) for name in number}
    factory = load_dense_sizes()
    assert dense["parameters, encoder"] == factory
    outside = number["parameters, whole model"] - number["parameters, encoder"]
    assert dense["parameters, whole model"] == factory + outside
    scope, whole = (
        f"MACs per second, {x}" for x in ("encoder", "from the audio")
    )
    assert 0 < number[scope] < min(dense[scope], number[whole])


def test_costs_of_a_model_that_hears_in_pieces(made):
    """They are those of one piece."""

    class InPieces(torch.nn.Module):
        aligned, longest = True, 8000  # samples

    loaded = load_export(made[0])
    half = cost_table(loaded, seconds=0.5)
    pieces = SimpleNamespace(
        hparams={"modules": {"lobe": InPieces()}},
        **{
            name: getattr(loaded, name)
            for name in ("encoder", "history", "key", "scope", "steps")
        },
    )
    found = cost_table(pieces, seconds=9)
    assert [row[1:] for row in found[3:5]] == [row[1:] for row in half[3:5]]
    assert [row[0] for row in found[5:]] == [
        "MACs per second, encoder, of 0.5 s"
    ]


def test_a_classifier_is_measured():
    """As EncoderClassifier calls it."""
    modules = {
        "compute_features": torch.nn.Unflatten(1, (-1, 4)),
        "mean_var_norm": lambda feats, lens: feats - lens,
        "embedding_model": lambda feats, lens: feats.mean(1),
    }
    found = encoder_of({"modules": modules})(torch.ones(1, 8), torch.ones(1))
    assert found.tolist() == [[0.0] * 4]
    with pytest.raises(ExportError, match="EncoderClassifier can be measured"):
        encoder_of({"modules": {"classifier": torch.nn.Identity()}})


def load_dense_sizes():
    """Parameters of the dense encoder that make_export starts from."""
    from speechbrain.lobes.models.transformer.Conformer import (
        ConformerEncoder,
    )

    return count_parameters(
        [
            ConformerEncoder(
                SIZES["num_encoder_layers"],
                d_model=SIZES["d_model"],
                d_ffn=SIZES["d_ffn"],
                nhead=SIZES["nhead"],
                kernel_size=SIZES["kernel_size"],
            )
        ]
    )


def test_speed_is_measured_in_turns():
    calls = []
    encoders = {
        name: lambda wavs, lengths, name=name: calls.append(name)
        for name in "ab"
    }
    speed = measure_speed(encoders, seconds=0.1, runs=3)
    assert calls == ["a", "b"] * 4  # the first round is not timed
    assert speed.keys() == {"a", "b"}


def test_memory_is_measured_in_a_fresh_process(made):
    ballast = torch.ones(500 * 2**18)  # 500 MiB here, not there
    peak, forward = measure_memory(made[0], seconds=1)
    assert ballast.sum() > 0
    assert 0 <= forward < 100
    assert forward < peak < resident_memory("VmHWM")


def test_a_peak_before_is_forgotten():
    _ = torch.ones(100 * 2**18).sum()  # 100 MiB, given back
    before = resident_memory("VmHWM")
    forget_peak()
    assert resident_memory("VmHWM") <= before
    assert resident_memory("VmHWM") - resident_memory("VmRSS") < 50


def test_table_is_aligned():
    lines = format_table([["a", "b"], ["long name", 1]]).splitlines()
    assert len({len(line) for line in lines}) == 1


# -------------------------------------------------------------- pruned again

AGAIN = (
    {f"{LAYER}.0.ffn_module2": "0 of 1:", f"{LAYER}.1.ffn_module1": "0 of 1:"},
    {
        f"{LAYER}.0.ffn_module1.units": "2 of 5: 0 4",
        f"{LAYER}.1.mha_layer.heads": "1 of 4: 2",
    },
)


@pytest.fixture(scope="module")
def thrice(tmp_path_factory):
    """The folder of a model that was cut three times."""
    folder = tmp_path_factory.mktemp("thrice") / "export"
    make_export(folder, again=AGAIN)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Memory is not measured, which takes a process."""
    monkeypatch.setattr(command, "measure_memory", lambda *_: None)


def real_sizes(export):
    """Parameters of the encoder after 0, 1, 2 and 3 cuts."""
    history = export.history
    return [
        count_parameters([rebuild(history.factory, history.edits[:n]).encoder])
        for n in range(4)
    ]


def number(cell):
    return int(cell.replace(",", ""))


def test_every_cut_is_counted_against_the_original(thrice):
    loaded = load_export(thrice)
    header, *rows = size_table(loaded, frames=40)
    assert header[3] == "MACs of 40 frames"
    sizes = real_sizes(loaded)
    assert sizes[-1] == count_parameters(loaded.scope)
    names = ["dense", "after cut 1", "after cut 2", "after cut 3"]
    for row, name, size in zip(rows, names, sizes, strict=True):
        gone = f"{1 - size / sizes[0]:.1%}"
        assert row[:3] == [name, f"{size:,}", gone]
    macs = [number(row[3]) for row in rows]
    assert macs == sorted(set(macs), reverse=True)
    dense = conformer_structures(loaded.history.stock(), only="")
    assert macs[0] == round(mac_cost(dense, 40).dense())
    left = conformer_structures(loaded.history.rebuild(), only="")
    assert macs[-1] == round(mac_cost(left, 40).dense())
    assert rows[-1][4] == f"{1 - macs[-1] / macs[0]:.1%}"


def test_costs_of_a_model_cut_thrice_are_those_of_the_original(thrice):
    loaded = load_export(thrice)
    sizes = real_sizes(loaded)
    rows = {row[0]: row[1:] for row in cost_table(loaded, seconds=1)}
    pruned, dense, _ = rows["parameters, encoder"]
    assert (number(pruned), number(dense)) == (sizes[-1], sizes[0])


def test_units_are_of_those_in_the_original(thrice):
    tables = unit_tables(load_export(thrice))
    cells = [{row[0]: row[1:-1] for row in table[1:]} for _, table in tables]
    first, middle, last = (f"{LAYER}.{i}" for i in range(3))
    assert [found[first] for found in cells] == [
        ["5/32", "3/4", "7/16", "32/32"],
        ["5/32", "3/4", "7/16", "-"],
        ["2/32", "3/4", "7/16", "-"],
    ]
    assert [found[middle] for found in cells] == [
        ["32/32", "4/4", "16/16", "-"],
        ["-", "4/4", "16/16", "-"],
        ["-", "1/4", "16/16", "-"],
    ]
    assert [found[last] for found in cells] == [["-"] * 4] * 3
    for (_, table), size in zip(
        tables, real_sizes(load_export(thrice))[1:], strict=True
    ):
        norm = 2 * SIZES["d_model"]  # of the encoder, outside of all layers
        assert number(table[-1][-1].split("/")[0]) == size - norm


def test_the_last_cut_may_be_of_a_part_of_the_module(thrice):
    """An edit names its module; the structures of the cut start there."""
    loaded = load_export(thrice)
    *edits, last = loaded.history.edits
    plan = {n.removeprefix("encoder."): k for n, k in last.plan.items()}
    edits.append(replace(last, module="encoder", plan=plan))
    inside = replace(loaded, history=replace(loaded.history, edits=edits))
    assert inside.steps[-1].declaration.scope == ("",)
    assert inside.scope == loaded.scope
    assert size_table(inside, frames=40) == size_table(loaded, frames=40)
    for (_, table), (_, expected) in zip(
        unit_tables(inside), unit_tables(loaded), strict=True
    ):
        cells = [row[1:] for row in table]
        assert cells == [row[1:] for row in expected]


def test_cuts_of_different_kinds(tmp_path):
    """Each has its own table; sizes are those of the last one's modules."""
    whole = {f"{LAYER}.2": "0 of 1:"}
    units = {f"{LAYER}.0.ffn_module1.units": "5 of 32: 0-3 9"}
    make_export(
        tmp_path / "export",
        structures=[
            partial(conformer_structures, kinds=["layers"]),
            partial(conformer_structures, kinds=["ffn_units"]),
        ],
        keep=whole,
        again=[units],
    )
    loaded = load_export(tmp_path / "export")
    (_, layers), (_, ffn) = unit_tables(loaded)
    assert layers[0] == ["layer", "layer", "parameters"]
    assert [row[1] for row in layers[1:]] == ["1/1", "1/1", "-", "2/3"]
    assert ffn[1][1:3] == ["5/32", "32/32"]
    assert [row[1] for row in size_table(loaded)[1:]] == [
        f"{size:,}" for size in real_sizes(loaded)[:3]
    ]


def test_report_of_one_cut_has_no_headings(made, quick):
    printed = write_report(made[0], seconds=1)
    assert printed.startswith("| layer ")
    assert "after cut" not in printed
    card = (made[0] / "README.md").read_text()
    assert "\n\nUnits kept of all:\n\n| layer" in card
    assert "after cut" not in card


def test_report_of_several_cuts(thrice, quick):
    printed = write_report(thrice, seconds=1)
    card = (thrice / "README.md").read_text()
    for text in (printed, card):
        headings = re.findall(r"^[A-Z].*:$", text, re.MULTILINE)
        assert headings == ["Size after each cut:"] + [
            f"Units kept of all, after cut {n}:" for n in (1, 2, 3)
        ]
    # the report counts for the given seconds, the card for the usual length
    assert "MACs of 26 frames" in printed and "MACs of 250 frames" in card


def test_picture_shows_what_is_left_of_the_original(thrice, quick, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        command, "draw_structure", lambda path, units: drawn.append(units)
    )
    write_report(thrice, seconds=1)
    (units,) = drawn
    assert units[f"{LAYER}.0"]["ffn_module1.units"] == (2, 32)
    assert units[f"{LAYER}.2"]["mha_layer.heads"] == (0, 4)


# ----------------------------------------------------------------- pictures


def test_structure_picture(made, tmp_path):
    exported = made[1]
    path = tmp_path / "structure.png"
    draw_structure(path, kept_units(exported.declaration, exported.plan))
    assert path.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "lines, drawn",
    [
        (LOG, True),
        (LOG.replace("_sparsity", "_sparsity[encoder]"), True),
        (LOG.splitlines()[1], True),
        (LOG.splitlines()[0], True),
        ("nothing\n", False),
        # what else a recipe may log
        ("epoch: 1 - train loss: tensor(2.67), train kind: soft\n", False),
        ("epoch: 1 - train attention_sparsity: 0.5\n", False),
    ],
)
def test_curves_picture(tmp_path, lines, drawn):
    log, path = tmp_path / "train_log.txt", tmp_path / "curves.png"
    log.write_text(lines)
    assert draw_curves(path, read_log(log)) == drawn
    assert path.is_file() == drawn


def test_groups_of_a_budget_are_told_apart(tmp_path, monkeypatch):
    log = LOG.splitlines()[0]
    groups = [log.replace("_sparsity", f"_sparsity[{n}]") for n in "ab"]
    (tmp_path / "log.txt").write_text("\n".join(groups))
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda axes, *_, **k: drawn.append(k))
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    assert draw_curves(tmp_path / "c.png", read_log(tmp_path / "log.txt"))
    styles = [(kind["color"], kind["linestyle"]) for kind in drawn]
    assert len({*styles}) == len(styles) == 2 * log.count("_sparsity")


def test_a_resumed_epoch_counts_once(tmp_path):
    log = tmp_path / "train_log.txt"
    log.write_text(LOG + "epoch: 2, lr: 1 - train loss: 2 - valid WER: 9\n")
    assert read_log(log)["valid WER"] == {1: 4.24, 2: 9.0}


# ------------------------------------------------------------- command line


def test_command(export, tmp_path):
    (tmp_path / "train_log.txt").write_text(LOG)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "sb_prune.report", str(export), "--seconds=1"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    speed = r"real-time factor\D+9 forwards +\| +(\S+) \|"
    assert float(re.search(speed, done.stdout)[1]) > 0
    assert f"| {LAYER}.2 " in done.stdout
    assert (export / "structure.png").read_bytes().startswith(PNG)
    assert (export / "curves.png").read_bytes().startswith(PNG)
    assert list(elsewhere.iterdir()) == []


def test_help_warns_of_what_a_folder_runs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "runs what the folder's hyperparams.yaml names" in printed


def refused(*arguments):
    """The one line that main ends with."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    message = str(stop.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_no_export(tmp_path):
    assert "is no export of sb_prune" in refused(tmp_path)
    assert "is no export of sb_prune" in refused(tmp_path / "missing")
    (tmp_path / "hyperparams.yaml").write_text("a: 1\n")
    assert "is no export of sb_prune" in refused(tmp_path)
    (tmp_path / "hyperparams.yaml").write_text("")
    assert "is no export of sb_prune" in refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["hyperparams.yaml", "model.ckpt", "normalizer.ckpt", "tokenizer.ckpt"],
)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated(export, name, share):
    path = export / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refused(export)
    assert str(path) in message
    assert "copy the whole" in message or "name the export_folder" in message


def test_missing_file(export):
    (export / "normalizer.ckpt").unlink()
    assert "normalizer.ckpt is missing; copy" in refused(export)


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("d_ffn: 32", "d_ffn: 28", "made for another architecture"),
        ("d_ffn: 32", "d_ffn: many", "cannot be read"),
        ("'3 of 4: 0-1 3'", "'3 of 4: 0-1'", "plan: cannot read"),
        ("'3 of 4: 0-1 3'", "'2 of 4: 0-1'", "does not fit the model"),
        ("  encoder: !ref", "  other: !ref", "has no `encoder`"),
    ],
)
def test_edited(export, old, new, reason):
    path = export / "hyperparams.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert reason in refused(export)


def test_log_that_is_none(export, tmp_path):
    assert "does not exist" in refused(export, "--log", tmp_path / "no.txt")
    (tmp_path / "log.txt").write_text("hello\n")
    log = tmp_path / "log.txt"
    assert "has no epoch" in refused(export, "--seconds=1", "--log", log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--threads=2"], "--threads: leave it out with one FOLDER"),
        (["--compare", "a", "--seconds=3"], "--seconds: leave it out with --c"),
        (["a", "--seconds=0"], "must be between 0.1 and 3600"),
        (["--compare", "a", "--output=x", "--threads=0"], "at least 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_models_are_named_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [*_named([".", "../other"])] == [tmp_path.name, "other"]


def test_errors_are_values(tmp_path):
    with pytest.raises(ExportError, match="name the export_folder"):
        load_export(tmp_path)
