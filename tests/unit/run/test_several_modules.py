"""A front-end and the Transformer it feeds, pruned by one plan."""

from functools import partial
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from rounding import assert_same_but_for_rounding
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from tiny_export import INFERENCE, KEEP, SIZES, make_export

from sb_prune import (
    LayerwiseDistillation,
    PruningMixin,
    conformer_structures,
    cut_,
    front_end_structures,
    joined_structures,
)
from sb_prune.declare.roots import root_of
from sb_prune.declare.tables import structure_table
from sb_prune.distillation import Distiller
from sb_prune.export.document import prepare_document
from sb_prune.export.loading import load_export
from sb_prune.report.command import cost_table
from sb_prune.support.measure import count_parameters

ENTRIES = ["CNN", "Transformer"]
PARTS = [front_end_structures, conformer_structures]
STEPS = 6


class Recipe(sb.Brain):
    """A front-end and a Conformer that regress their targets."""

    def compute_forward(self, batch, stage):
        encoded, _ = self.modules.Transformer(
            self.modules.CNN(batch["x"]), None, batch["lengths"]
        )
        return self.modules.lin(encoded)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch["y"]).square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.checkpointer.save_and_keep_only(meta={"epoch": epoch})


class PrunedRecipe(PruningMixin, Recipe):
    """The same recipe, pruned."""


class Whole(torch.utils.data.Dataset):
    """Whole batches as items."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "x": torch.randn(2, 24, 12, generator=generator),
            "y": torch.randn(2, 6, 3, generator=generator),
            "lengths": torch.tensor([1.0, 0.7]),
        }


@pytest.fixture
def make_brain(make_front_end, tmp_path):
    def make(**changes):
        torch.manual_seed(0)
        root = make_front_end(dropout=0.1).train()
        modules = {**root, "lin": torch.nn.Linear(16, 3)}
        counter = EpochCounter(4)
        recoverables = {
            "model": torch.nn.ModuleList(modules.values()),
            "counter": counter,
        }
        block = {
            "module": ENTRIES,
            "structures": PARTS,
            "target": 0.5,
            "prune_epochs": 2,
            "schedule_steps": STEPS,
            **changes,
        }
        return PrunedRecipe(
            modules=modules,
            opt_class=partial(torch.optim.Adam, lr=0.002),
            hparams={"pruning": block, "epoch_counter": counter},
            run_opts={"device": "cpu", "noprogressbar": True},
            checkpointer=Checkpointer(tmp_path / "save", recoverables),
        )

    return make


def fit(brain):
    options = {"batch_size": None, "collate_fn": None}
    counter = brain.hparams.epoch_counter
    brain.fit(counter, Whole(), train_loader_kwargs=options)
    return brain


def sizes(modules):
    return {n: count_parameters([m]) for n, m in modules.items()}


@pytest.mark.parametrize(
    "target", [0.5, {"Transformer": 0.5, "CNN": 0.3}], ids=["one", "each"]
)
def test_a_run_over_both(make_brain, target):
    """Prune, cut, fine-tune, with the dense front-end teaching its own."""
    distillation = partial(LayerwiseDistillation, outputs=["lin"])
    brain = make_brain(target=target, distillation=distillation)
    dense = sizes(brain.modules)
    fit(brain)
    run, small = brain.pruning, sizes(brain.modules)
    assert run.facts["cut_max_abs_diff"] <= 1e-5
    assert all(small[entry] < dense[entry] for entry in ENTRIES)
    if target != 0.5:
        gone = 1 - small["CNN"] / dense["CNN"]
        assert 0.3 <= gone < 0.6  # channels are few
    assert run.distiller.teacher._layers == {
        "Transformer": ["encoder.layers.0", "encoder.layers.1"]
    }
    # a fresh process rebuilds both from the folder
    again = make_brain(target=target, distillation=distillation)
    again.pruning.resume_for_evaluation_(again)
    assert sizes(again.modules) == small


def test_teacher_replays_its_own_front_end(make_front_end, random_plan):
    root = make_front_end()
    modules = {**root, "lin": torch.nn.Linear(16, 3)}
    batch = Whole()[0]

    def forward():
        encoded, _ = modules["Transformer"](
            modules["CNN"](batch["x"]), None, batch["lengths"]
        )
        return modules["lin"](encoded)

    with torch.no_grad():
        dense = forward()
    declaration = joined_structures(root_of(modules, ENTRIES), PARTS)
    distiller = Distiller(
        LayerwiseDistillation(outputs=["lin"]), modules, ENTRIES, declaration
    )
    cut_(declaration, random_plan(declaration, keep=0.7))
    distiller.teacher.listen_(modules)
    distiller.teacher.begin_()
    small = forward()
    # The replay runs with gradients on other memory: kernels may round apart.
    taught = distiller.teacher.outputs["lin"]
    torch.testing.assert_close(taught, dense, rtol=1e-5, atol=1e-5)
    assert distiller.teacher.loose("lin") is None
    loss = distiller.add(torch.zeros(()), [True, True])
    loss.backward()
    assert (small - dense).abs().max() > 0.01
    first = modules["CNN"].convblock_0.convs.conv_0.conv.weight
    assert first.grad.abs().sum() > 0  # it learns through the layers


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"module": ["CNN", "Nowhere"]}, "'Nowhere' is not in `modules`; writ"),
        ({"module": ["CNN", "CNN"]}, "a list that names each once"),
        ({"structures": [*PARTS, "x"]}, "structures: 'x'; write !name: and"),
        (
            {"structures": [front_end_structures] * 2},
            "conv_0.channels is declared twice; name every function",
        ),
        ({"module": "CNN"}, r"list both, e.g. module: \[CNN, Transformer\]"),
        ({"module": "Transformer"}, "0 ConvolutionFrontEnd found, not 1; list"),
        (
            {"target": {"CNN": 0.3, "encoder": 0.5}},
            r"no structure lies below 'encoder'; the modules are \['CNN', 'Tr",
        ),
        (
            {"target": {"CNN": 0.3}},
            r"Transformer.encoder.layers.0 lies in no group",
        ),
    ],
)
def test_bad_values(make_brain, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(make_brain(**changes))


def test_frozen_front_end_is_refused(make_brain):
    brain = make_brain()
    weight = brain.modules.CNN.convblock_1.convs.conv_0.conv.weight
    weight.requires_grad_(False)
    with pytest.raises(ValueError, match="CNN.convblock_1.* is frozen"):
        fit(brain)


# ------------------------------------------------------------------- export

FRONT = "CNN.convblock_{}.convs.conv_0.channels"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export of both, and what was exported."""
    folder = tmp_path_factory.mktemp("both") / "export"
    keep = {f"Transformer.{name}": kept for name, kept in KEEP.items()}
    keep[FRONT.format(0)] = "1 of 32: 5"
    keep[FRONT.format(1)] = "10 of 32: 5-14"
    structures = partial(joined_structures, parts=PARTS)
    made = make_export(folder, module=ENTRIES, structures=structures, keep=keep)
    return folder, made


def test_from_hparams_loads_both_bit_for_bit(made, tmp_path):
    folder, exported = made
    loaded = EncoderASR.from_hparams(
        source=str(folder), savedir=str(tmp_path / "saved")
    )
    # torch multiplies frozen weights by other kernels; theirs are frozen
    encoder = exported.hparams["modules"]["encoder"].eval()
    encoder.requires_grad_(False)
    wavs, lengths = torch.randn(2, 8000), torch.tensor([1.0, 0.6])
    theirs = loaded.mods.encoder(wavs, lengths)
    assert_same_but_for_rounding(encoder(wavs, lengths), theirs)
    assert loaded.mods.encoder.CNN.convblock_0.convs.conv_0.in_channels == 1


def test_report_of_both(made):
    loaded = load_export(made[0])
    (step,) = loaded.steps
    assert step.plan.to_dict() == made[1].plan.to_dict()
    cells = {r[0]: r[1:] for r in structure_table(step.declaration, step.plan)}
    assert cells["CNN.convblock_0"][0] == "1/32"
    assert cells["CNN.convblock_1"][0] == "10/32"
    blocks = list(loaded.scope[0].values())
    assert (
        cells["CNN.convblock_1"][-1]
        == f"{count_parameters(blocks[1:]):,}/10,528"
    )
    rows = {row[0]: row[1] for row in cost_table(loaded, seconds=1)}
    (scope,) = [name for name in rows if name.startswith("parameters, CNN, ")]
    assert rows[scope] == f"{count_parameters(loaded.scope):,}"


def test_one_module_is_built_where_it_stands(tmp_path):
    """The list changes nothing where it is not written."""
    make_export(tmp_path / "export")
    text = (tmp_path / "export/hyperparams.yaml").read_text()
    assert "\nTransformer: !apply:sb_prune.rebuild\n" in text
    assert "pruned_modules" not in text


MODEL = """\
model: !new:torch.nn.ModuleList
    - [!ref <CNN>, !ref <Transformer>, !ref <ctc_lin>]
"""


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda text: MODEL + text.replace(MODEL, ""),
            r"model refers to \['CNN', 'Transformer'\] above the last",
        ),
        (
            lambda text: text + "\npruned_modules: 1\n",
            "pruned_modules is what the export calls the cut modules; write",
        ),
        (
            lambda text: text.replace("CNN: !new:", "CNN: !name:"),
            "CNN must be a !new: of the stock class",
        ),
    ],
)
def test_yamls_that_cannot_be_exported(tmp_path, change, message):
    path = tmp_path / "inference.yaml"
    path.write_text(change(INFERENCE.read_text()))
    with open(INFERENCE) as file:
        hparams = load_hyperpyyaml(file, SIZES)
    brain = SimpleNamespace(
        modules={}, hparams=SimpleNamespace(**{**hparams, **SIZES})
    )
    with pytest.raises(ValueError, match=message):
        prepare_document(tmp_path / "export", path, brain, ENTRIES)
