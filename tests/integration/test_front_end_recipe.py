"""The LibriSpeech recipe, its front-end pruned with its Transformer."""

import re
import signal

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import (
    KILLED,
    RECIPE,
    TINY_PRUNE,
    options,
    run_python,
)
from rounding import assert_same_but_for_rounding
from speechbrain.inference.ASR import EncoderASR

from sb_prune import (
    conformer_structures,
    cut_,
    front_end_structures,
    joined_structures,
    mac_cost,
)
from sb_prune.declare.plan import Plan
from sb_prune.declare.roots import root_of
from sb_prune.report.command import main
from sb_prune.run.snapshots import read_meta

ENTRIES = ["CNN", "Transformer"]
BLOCK = """\
    module: [CNN, Transformer]
    structures:
        - !name:sb_prune.front_end_structures
        - !name:sb_prune.conformer_structures
    budget: !name:sb_prune.MACBudget
        frames: 400
"""


@pytest.fixture(scope="module")
def train(corpus, dense_run, tmp_path_factory):
    """Function: runs the recipe with both modules pruned, into a folder."""
    text = (RECIPE / "hparams/demo_prune.yaml").read_text()
    for old, new in {
        "    module: Transformer\n": BLOCK,
        r"target: 0.5.*\n": "target: {CNN: 0.3, Transformer: 0.5}\n",
    }.items():
        text, found = re.subn(old, new, text)
        assert found
    path = tmp_path_factory.mktemp("yaml") / "prune.yaml"
    path.write_text(text)

    def run(folder, script=RECIPE / "train.py", **how):
        folders = {
            "data_folder": corpus,
            "dense_folder": dense_run,
            "output_folder": folder,
        }
        flags = options(TINY_PRUNE, **folders)
        return run_python(script, path, *flags, **how)

    return run


@pytest.fixture(scope="module")
def run_folder(train, tmp_path_factory):
    """Killed between cut and fine-tuning, run again, finished."""
    folder = tmp_path_factory.mktemp("both") / "run"
    killed = train(folder, script=KILLED, check=False, KILL_PHASE="cut")
    assert killed.returncode == -signal.SIGKILL
    train(folder)
    return folder


def test_both_are_cut_to_their_targets(run_folder):
    meta = read_meta(run_folder / "save/cut")
    assert meta["difference"] <= 1e-5
    declaration, _ = dense_model(run_folder)
    kept = Plan.from_dict(meta["plan"]).kept_counts(declaration)
    for entry, target in {"CNN": 0.3, "Transformer": 0.5}.items():
        cost = mac_cost(declaration, 400, entry)
        gone = 1 - float(cost.of_kept(kept)) / cost.dense()
        assert target <= gone < target + 0.03


def dense_model(folder):
    """The run's dense declaration and its hparams."""
    with open(folder / "hyperparams.yaml") as file:
        hparams = load_hyperpyyaml(file)
    parts = [front_end_structures, conformer_structures]
    root = root_of(hparams["modules"], ENTRIES)
    return joined_structures(root, parts), hparams


def test_export_is_the_model_that_was_evaluated(run_folder, tmp_path):
    declaration, hparams = dense_model(run_folder)
    cut_(
        declaration, Plan.from_dict(read_meta(run_folder / "save/cut")["plan"])
    )
    hparams["checkpointer"].checkpoints_dir = run_folder / "save/finetune"
    hparams["checkpointer"].recover_if_possible(min_key="WER")
    for module in hparams["modules"].values():
        module.eval().requires_grad_(False)
    wavs, lengths = torch.randn(2, 16000), torch.tensor([1.0, 0.5])
    features = hparams["compute_features"](wavs)
    features = hparams["normalize"](features, lengths)
    encoded = hparams["Transformer"].encode(hparams["CNN"](features), lengths)
    mine = hparams["ctc_lin"](encoded).log_softmax(-1)
    loaded = EncoderASR.from_hparams(
        source=str(run_folder / "export"), savedir=str(tmp_path / "saved")
    )
    assert_same_but_for_rounding(loaded.encode_batch(wavs, lengths), mine)


def test_log_names_both_targets(run_folder):
    log = (run_folder / "train_log.txt").read_text()
    for entry in ENTRIES:
        assert f"realised_sparsity[{entry}]" in log
    assert "distill_hidden" in log and "distill_ctc_lin" in log


def test_report_reads_the_export(run_folder, capsys):
    main([str(run_folder / "export"), "--seconds=1"])
    printed = capsys.readouterr().out
    assert "CNN.convblock_1" in printed
    assert "Transformer.encoder.layers.1" in printed
