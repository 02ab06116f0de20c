"""Wrong values in a YAML: each is heard before anything trains.

Each line of the tables is what a user writes and what they are told. The
message names the key, the value and what to write.
"""

import inspect
from functools import partial

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import DataLoader

import sb_prune
from sb_prune import pruned
from sb_prune.depth import criteria
from sb_prune.run.data import Data
from sb_prune.support.values import Kind

CRITERIA = ("ConvexityPeak", "LastLayers", "RandomLayers", "SimilarBlock")
STRUCTURES = [
    name
    for name in sb_prune.__all__
    if name.endswith("_structures")
    and name not in ("joined_structures", "layer_structures")
]

PRUNING = """
module: Transformer
structures: !name:sb_prune.conformer_structures
target: 0.5
prune_epochs: 2
schedule_steps: 10
"""
LAYERS = """
module: Transformer
structures: !name:sb_prune.conformer_structures
criterion: !new:sb_prune.depth.LastLayers {removed: 1}
"""


class Recipe(sb.Brain):
    """Enough of a recipe to be pruned; it is never trained."""

    def compute_objectives(self, predictions, batch, stage):
        return predictions


@pytest.fixture(scope="module")
def begin(make_asr):
    """Function: folder, YAML of a recipe -> its Brain, ready to train."""

    def run(folder, **hparams):
        modules = {"Transformer": make_asr(), "lin": torch.nn.Linear(16, 3)}
        counter = EpochCounter(4)
        brain = pruned(Recipe)(
            modules=modules,
            opt_class=torch.optim.Adam,
            hparams=hparams,
            run_opts={"device": "cpu"},
            checkpointer=Checkpointer(
                folder / "save",
                {
                    "model": torch.nn.ModuleList(modules.values()),
                    "counter": counter,
                },
            ),
        )
        if brain.pruning.has_phases:
            data = Data(brain, DataLoader(range(100)), None, {}, {})
            brain.pruning.begin_(brain, counter, data)
            next(brain.pruning.phases())
        return brain

    return run


@pytest.fixture
def refused(begin, tmp_path):
    """Function: what is written in a block -> what the user is told."""

    def message(name, block, written, error=ValueError):
        written = written.replace("TMP", str(tmp_path))
        changed = {**load_hyperpyyaml(block), **load_hyperpyyaml(written)}
        with pytest.raises(error) as caught:
            begin(tmp_path, **{name: changed})
        return str(caught.value).replace(str(tmp_path), "TMP")

    return message


GATES = "!name:sb_prune.HardConcrete"
DISTILLATION = "!name:sb_prune.LayerwiseDistillation"
CONFORMER = "!name:sb_prune.conformer_structures"
WHOLE = "write a whole number, "
SPARSITY = "write a number between 0 and 1, e.g. 0.5 to cut half"


@pytest.mark.parametrize(
    "written, told",
    [
        # ------------------------------------------------- of the block itself
        ("min_keep: 0", f"min_keep: 0; {WHOLE}1 or more"),
        ("min_keep: '2'", f"min_keep: '2'; {WHOLE}1 or more"),
        ("prune_epochs: -1", f"prune_epochs: -1; {WHOLE}1 or more"),
        ("prune_epochs: 1.5", f"prune_epochs: 1.5; {WHOLE}1 or more"),
        ("prune_epochs: True", f"prune_epochs: True; {WHOLE}1 or more"),
        ("prune_epochs: [2]", f"prune_epochs: [2]; {WHOLE}1 or more"),
        ("prune_epochs:", f"prune_epochs: None; {WHOLE}1 or more"),
        ("schedule_steps: -5", f"schedule_steps: -5; {WHOLE}0 or more"),
        ("schedule_steps: 0", f"schedule_steps: 0; {WHOLE}1 or more"),
        ("schedule_steps: 1e3", f"schedule_steps: 1000.0; {WHOLE}0 or more"),
        ("seed: x", f"seed: 'x'; {WHOLE}0 or more"),
        ("seed: -1", f"seed: -1; {WHOLE}0 or more"),
        ("target: '0.5'", f"target: '0.5'; {SPARSITY}"),
        ("target: 50%", f"target: '50%'; {SPARSITY}"),
        ("target: 50", f"target: 50; {SPARSITY}"),
        ("target: 0", f"target: 0; {SPARSITY}"),
        ("target: 1", f"target: 1; {SPARSITY}"),
        ("target: .nan", f"target: nan; {SPARSITY}"),
        ("target: [0.3, 0.5]", f"target: [0.3, 0.5]; {SPARSITY}"),
        ("target: True", f"target: True; {SPARSITY}"),
        ("target:", f"target: None; {SPARSITY}"),
        ("target: {}", f"target: {{}}; {SPARSITY}; or a mapping, one for each"),
        ("target: {encoder: 5}", f"target: encoder: 5; {SPARSITY}"),
        ("target: {encoder: '1'}", f"target: encoder: '1'; {SPARSITY}"),
        ("target: {decoder: 0.5}", "target: no structure lies below 'decoder'"),
        ("module:", "module: None; write a key of `modules`"),
        ("module: 3", "module: 3; write a key of `modules`, or a list of them"),
        ("module: ''", "module: ''; write a key of `modules`"),
        (
            "module: !new:pathlib.Path [Transformer]",
            "module: an object of PosixPath; write a key of `modules`",
        ),
        ("module: []", "module: []; write a key of `modules`, or a list"),
        ("module: [3]", "module: 3; write a key of `modules`"),
        (
            "module: !new:torch.nn.Linear [2, 3]",
            "module: an object of Linear; write a key of `modules`",
        ),
        ("module: transformer", "'transformer' is not in `modules`; write one"),
        ("start_from: 5", "start_from: 5; write the save folder of a dense"),
        ("start_from: [a]", "start_from: ['a']; write the save folder of a"),
        ("start_min_key: WER", "'WER' chooses among the checkpoints of `start"),
        ("start_from: a\nstart_min_key: 3", "start_min_key: 3; write a key of"),
        (
            "start_from: a\nstart_min_key: WER\nstart_max_key: ACC",
            "write `start_min_key` or `start_max_key`, not both",
        ),
        ("inference: a", "write both `inference` and `export_folder`, or nei"),
        ("inference: 3\nexport_folder: a", "inference: 3; write the YAML of"),
        ("inference: a\nexport_folder: 5", "export_folder: 5; write a folder"),
        (
            "inference: a\nexport_folder: b",
            "inference: a does not exist; write",
        ),
        (
            "inference: TMP\nexport_folder: TMP/out",
            "inference: TMP is a folder; write the YAML of the dense model",
        ),
        (
            "inference: a\nexport_folder: TMP/save",
            "export_folder: TMP/save holds the checkpoints of this run; write",
        ),
        (
            "inference: a\nexport_folder: TMP",
            "export_folder: TMP holds the checkpoints of this run; write",
        ),
        ("milestones: 0.3", "milestones: 0.3; write a list, e.g. [0.3, 0.5]"),
        ("milestones: '0.3'", "milestones: '0.3'; write a list, e.g. [0.3"),
        ("milestones: ['0.3']", "milestones: '0.3'; write a number between 0"),
        ("milestones: [0.3]", "write `inference` and `export_folder` too"),
        (
            "hold_weights: True\nschedule: !name:sb_prune.ConstantSchedule",
            "hold_weights: nothing is measured",
        ),
        (
            "milestones: [0.3]\ninference: a.yaml\nexport_folder: export\n"
            "schedule: !name:sb_prune.ConstantSchedule",
            "milestones: the schedule does not pass them",
        ),
        (
            "milestones: [0.3]\ntarget: {encoder: 0.5}",
            "`target` names several; leave `milestones` out",
        ),
        (
            "prune_epoch: 3",
            "pruning: prune_epoch: PruningSettings has no such arg",
        ),
        ("prune_epoch: 3", "; write prune_epochs"),
        ("schedule_step: 3", "; write schedule_steps"),
        (
            "bound: 3",
            "pruning: bound: PruningSettings has no such argument; write",
        ),
        # ------------------------------------------------------- of structures
        ("structures:", "structures: None; write !name: and a function, e.g."),
        ("structures: conformer", "structures: 'conformer'; write !name: and"),
        ("structures: []", "structures: []; write !name: and a function"),
        ("structures: [a]", "structures: 'a'; write !name: and a function"),
        (
            "structures: !name:sb_prune.HardConcrete",
            "structures: HardConcrete; write !name: and a function",
        ),
        (
            "structures: !name:torch.mean",
            "structures: mean cannot take an object of TransformerASR (",
        ),
        (
            "structures: !name:sb_prune.taylor_score",
            "structures: taylor_score cannot take an object of TransformerASR",
        ),
        (
            "structures: !name:builtins.repr",
            "structures: repr gives 'TransformerASR(",
        ),
        (f"structures: {CONFORMER} {{kind: [heads]}}", "; write kinds"),
        (
            f"structures: {CONFORMER} {{kinds: heads}}",
            "structures: kinds: 'heads'; write a list of 1 or more, e.g. [h",
        ),
        (
            f"structures: {CONFORMER} {{kinds: []}}",
            "kinds: []; write a list of",
        ),
        (f"structures: {CONFORMER} {{kinds: [3]}}", "kinds: 3; write names of"),
        (
            f"structures: {CONFORMER} {{kinds: [head]}}",
            "cannot be cut here; wr",
        ),
        (
            f"structures: {CONFORMER} {{only: '('}}",
            "structures: only: '('; write a regular expression, e.g. lay",
        ),
        (
            f"structures: {CONFORMER} {{only: 1}}",
            "only: 1; write a regular exp",
        ),
        (
            f"structures: {CONFORMER} {{channel_multiple: 8}}",
            "conformer_structures has no such argument; write one of kinds, on",
        ),
        (f"structures: {CONFORMER} {{root: 8}}", "write one of kinds, only"),
        (
            f"structures:\n  - {CONFORMER} {{kidns: [heads]}}",
            "structures: kidns: conformer_structures has no such argument; wr",
        ),
        (
            "structures: !name:sb_prune.wav2vec2_structures "
            "{channel_multiple: 0}",
            f"structures: channel_multiple: 0; {WHOLE}1 or more",
        ),
        (
            "structures: !name:sb_prune.encoder_decoder_structures "
            "{tokens_per_frame: 0}",
            "structures: tokens_per_frame: 0; write a number above 0",
        ),
        # ------------------------------------------------------------ of gates
        (f"gates: {GATES} {{bound: -1}}", "gates: bound: -1; write a number a"),
        (
            f"gates: {GATES} {{bound: '12'}}",
            "gates: bound: '12'; write a numbe",
        ),
        (
            f"gates: {GATES} {{bound: .inf}}",
            "gates: bound: inf; write a number",
        ),
        (
            f"gates: {GATES} {{temperature: 0}}",
            "temperature: 0; write a number",
        ),
        (
            f"gates: {GATES} {{temperature: -1}}",
            "temperature: -1; write a numb",
        ),
        (
            f"gates: {GATES} {{lower: 0}}",
            "gates: lower: 0; write a number belo",
        ),
        (
            f"gates: {GATES} {{upper: 1}}",
            "gates: upper: 1; write a number abov",
        ),
        (
            f"gates: {GATES} {{initial: '0.9'}}",
            "gates: initial: '0.9'; write a",
        ),
        (
            f"gates: {GATES} {{initial: 1}}",
            "gates: initial: 1; write a number ",
        ),
        (
            f"gates: {GATES} {{initial: {{heads: 2}}}}",
            "gates: initial: heads: 2; write a number between 0 and 1",
        ),
        (
            f"gates: {GATES} {{initial: {{hats: 0.5}}}}",
            "initial: unknown kind ['hats']; declared are",
        ),
        (
            f"gates: {GATES} {{straight_through: 'no'}}",
            "gates: straight_through: 'no'; write True or False, without qu",
        ),
        (
            f"gates: {GATES} {{straight_trough: True}}",
            "gates: straight_trough: HardConcrete has no such argument; write "
            "straight_through",
        ),
        (
            f"gates: {GATES} {{initial: 0.8}}\n"
            "first_score: !name:sb_prune.magnitude_score",
            "gates: initial: 0.8 has no effect where `first_score` says how",
        ),
        (
            "gates: !name:sb_prune.LinearSchedule",
            "gates: LinearSchedule; write !name: and a class with initial_",
        ),
        ("gates: !name:torch.mean", "gates: mean cannot be made (mean() recei"),
        ("gates: !name:builtins.dict", "gates: dict; write !name: and a class"),
        (
            "gates: {bound: 12}",
            "gates: {bound: 12}; write !name: and a class",
        ),
        (
            "gates: !new:sb_prune.HardConcrete",
            "gates: an object of HardConcrete is made already; write !name: in",
        ),
        # ------------------------------------- of schedule, budget, controller
        (
            "schedule: !name:sb_prune.HardConcrete",
            "schedule: HardConcrete; write !name: and a class with fra",
        ),
        (
            "schedule: !name:sb_prune.LinearSchedule {steps: 3}",
            "schedule: steps: 3; leave it out here: it is the block's own key "
            "schedule_steps",
        ),
        (
            "schedule: !name:sb_prune.LinearSchedule {start: '0.2'}",
            "schedule: start: '0.2'; write a number, 0 or more and below 1",
        ),
        (
            "schedule: !name:sb_prune.CubicSchedule {start: 1}",
            "schedule: start: 1; write a number, 0 or more and below 1",
        ),
        (
            "schedule: !name:sb_prune.CubicSchedule {begin: 0.1}",
            "schedule: begin: CubicSchedule has no such argument; write start",
        ),
        ("schedule: linear", "schedule: 'linear'; write !name: and a class"),
        (
            "budget: !name:sb_prune.ParameterBudget {frames: 100}",
            "budget: frames: ParameterBudget has no such argument; leave it ou",
        ),
        (
            "budget: !name:sb_prune.MACBudget {target: 0.3}",
            "budget: target: 0.3; leave it out here: it is the block's own key",
        ),
        (
            "budget: !name:sb_prune.MACBudget {frames: 0}",
            f"budget: frames: 0; {WHOLE}1 or more",
        ),
        (
            "budget: !name:sb_prune.MACBudget {frames: -100}",
            f"budget: frames: -100; {WHOLE}1 or more",
        ),
        (
            "budget: !name:sb_prune.MACBudget {frames: 0.5}",
            f"budget: frames: 0.5; {WHOLE}1 or more",
        ),
        (
            "budget: !name:sb_prune.MACBudget {frames: '250'}",
            f"budget: frames: '250'; {WHOLE}1 or more",
        ),
        ("budget: MACs", "budget: 'MACs'; write !name: and a class with"),
        (
            "controller: !name:sb_prune.ExactBudget {tolerance: '1'}",
            "controller: tolerance: '1'; write a number above 0",
        ),
        (
            "controller: !name:sb_prune.AugmentedLagrangian {lr: -1}",
            "controller: lr: -1; write a number above 0",
        ),
        (
            "controller: !name:sb_prune.AugmentedLagrangian {lr: '0.1'}",
            "controller: lr: '0.1'; write a number above 0",
        ),
        (
            "controller: !name:sb_prune.LinearSchedule",
            "controller: LinearSchedule; write !name: and a class with st",
        ),
        (
            "controller: !new:sb_prune.ExactBudget",
            "controller: an object of ExactBudget is made already; write !name",
        ),
        # --------------------------------------------- of optimizer and scores
        ("gate_optimizer: 0.05", "gate_optimizer: 0.05; write !name: and a cl"),
        (
            "gate_optimizer: !name:torch.optim.Adam {lr: -1}",
            "gate_optimizer: Adam(lr: -1) cannot be made (Invalid learning",
        ),
        (
            "gate_optimizer: !name:torch.optim.Adam {lr: '0.2'}",
            "; write lr: 0.2 without quotes",
        ),
        (
            "gate_optimizer: !name:torch.optim.Adam {rl: 0.2}",
            "gate_optimizer: rl: Adam has no such argument; write one of lr, ",
        ),
        (
            "gate_optimizer: !name:torch.optim.Adam {params: 0.2}",
            "gate_optimizer: params: Adam has no such argument; write one of",
        ),
        (
            "gate_optimizer: !name:torch.optim.Adam {amsgrad: 'no'}",
            "gate_optimizer: amsgrad: 'no'; write True or False, without",
        ),
        (
            "gate_optimizer: !name:torch.nn.Linear",
            "gate_optimizer: Linear; write !name: and a class with step,",
        ),
        ("first_score: magnitude", "first_score: 'magnitude'; write !name:"),
        (
            "first_score: !name:sb_prune.HardConcrete",
            "first_score: HardConcrete; write !name: and a function",
        ),
        (
            "score: !name:sb_prune.ExactBudget",
            "score: ExactBudget; write !name: and a function",
        ),
        ("score: !name:shutil.copyfile", "score: copyfile: missing a required"),
        (
            "score: !name:sb_prune.taylor_score\ngates: !name:torch.nn.Linear",
            "gates: Linear; write !name: and a class with",
        ),
        (
            f"score: !name:sb_prune.taylor_score\ngates: {GATES}",
            "a score leaves nothing to learn; leave out `gates`, or leave out",
        ),
        (
            "score_every: 5",
            "nothing is scored; leave out `score_every`, or add",
        ),
        (
            "score: !name:sb_prune.taylor_score\nscore_every: 0",
            f"score_every: 0; {WHOLE}1 or more",
        ),
        # ----------------------------------------------------- of distillation
        (
            f"distillation: {DISTILLATION} {{outputs: lin}}",
            "distillation: outputs: 'lin'; write a list, e.g. [ctc_lin]",
        ),
        (
            f"distillation: {DISTILLATION} {{outputs: [line]}}",
            "distillation: outputs: ['line'] are not in `modules`; write some",
        ),
        (
            f"distillation: {DISTILLATION} {{hidden_weight: -1}}",
            "distillation: hidden_weight: -1; write a number, 0 or more",
        ),
        (
            f"distillation: {DISTILLATION} {{output_weight: '1'}}",
            "distillation: output_weight: '1'; write a number, 0 or more",
        ),
        (
            f"distillation: {DISTILLATION} {{task_weight: None}}",
            "distillation: task_weight: 'None'; write a number, 0 or more",
        ),
        (
            f"distillation: {DISTILLATION} {{temperature: 0}}",
            "distillation: temperature: 0; write a number above 0",
        ),
        (
            f"distillation: {DISTILLATION} {{match: nearest}}",
            "distillation: match: 'nearest'; write !name: and a function",
        ),
        (
            f"distillation: {DISTILLATION} {{match: !name:torch.nn.ReLU }}",
            "distillation: match: ReLU; write !name: and a function",
        ),
        (
            "distillation: !name:sb_prune.HardConcrete",
            "distillation: HardConcrete; write !name: and a class with lo",
        ),
        (
            "distillation: !new:sb_prune.LayerwiseDistillation",
            "distillation: an object of LayerwiseDistillation is made already",
        ),
    ],
)
def test_wrong_values_of_pruning(refused, written, told):
    assert told in refused("pruning", PRUNING, written)


PEAK = "!new:sb_prune.depth.ConvexityPeak"


@pytest.mark.parametrize(
    "written, told",
    [
        ("criterion: ConvexityPeak", "criterion: 'ConvexityPeak'; write !new:"),
        (
            f"criterion: {PEAK.replace('new', 'name')}",
            "ConvexityPeak; write !n",
        ),
        ("criterion: !name:sb_prune.taylor_score", "taylor_score; write !new:"),
        (f"criterion: {PEAK}", "ConvexityPeak compares classes; write `label"),
        ("labels: 3", "labels: 3; write a key of the training data, or a list"),
        ("labels: [word, 3]", "labels: 3; write a key of the training data"),
        ("sample: 0", f"sample: 0; {WHOLE}1 or more"),
        ("sample: all", f"sample: 'all'; {WHOLE}1 or more"),
        ("seed: -1", f"seed: -1; {WHOLE}0 or more"),
        ("pooling: mean", "pooling: 'mean'; write !name: and a function"),
        (
            "pooling: !name:torch.nn.ReLU",
            "pooling: ReLU; write !name: and a fu",
        ),
        (
            "sampel: 5",
            "sampel: LayerSettings has no such argument; write sample",
        ),
        ("module: encoder", "layer_pruning: module: 'encoder' is not in"),
        ("structures: conformer", "structures: 'conformer'; write !name: and"),
        (f"structures: [{CONFORMER} ]", "write !name: and a function, e.g."),
        (f"structures: {CONFORMER} {{only: ')'}}", "structures: only: ')'; wr"),
        (
            "start_from: a\nstart_min_key: WER\nstart_max_key: ACC",
            "layer_pruning: write `start_min_key` or `start_max_key`, not both",
        ),
        ("start_max_key: ACC", "'ACC' chooses among the checkpoints of `start"),
        ("export_folder: a", "write both `inference` and `export_folder`"),
        (
            "inference: a\nexport_folder: TMP/save",
            "export_folder: TMP/save holds the checkpoints of this run; write",
        ),
        (
            "teacher: results/dense",
            "nothing is learned from one; leave out `teacher`, or add `distil",
        ),
        (
            f"distillation: {DISTILLATION}\nteacher: 3",
            "teacher: 3; write the save folder of a dense run, or an export",
        ),
        (
            "distillation: !name:sb_prune.HardConcrete",
            "distillation: HardConcrete; write !name: and a class with lo",
        ),
        (
            f"distillation: {DISTILLATION} {{temperature: 0}}",
            "distillation: temperature: 0; write a number above 0",
        ),
    ],
)
def test_wrong_values_of_layer_pruning(refused, written, told):
    message = refused("layer_pruning", LAYERS, written)
    assert "layer_pruning: " in message or "export_folder" in message
    assert told in message


@pytest.mark.parametrize(
    "written, told",
    [
        (
            f"{PEAK} {{neighbours: '9'}}",
            f"ConvexityPeak: neighbours: '9'; {WHOLE}",
        ),
        (
            f"{PEAK} {{max_pairs: -1}}",
            f"ConvexityPeak: max_pairs: -1; {WHOLE}1",
        ),
        (
            "!new:sb_prune.depth.RandomLayers {removed: 1, seed: -1}",
            f"RandomLayers: seed: -1; {WHOLE}0 or more",
        ),
        (
            "!new:sb_prune.depth.LastLayers {removed: 1.5}",
            f"LastLayers: removed: 1.5; {WHOLE}0 or more",
        ),
        (
            "!new:sb_prune.depth.SimilarBlock {similarity: cka, removed: 1}",
            "SimilarBlock: similarity: 'cka'; write !name: and a function",
        ),
    ],
)
def test_wrong_values_of_criteria_are_heard_where_they_are_made(written, told):
    with pytest.raises(ValueError) as caught:
        load_hyperpyyaml(f"criterion: {written}")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        sb_prune.AugmentedLagrangian,
        sb_prune.CubicSchedule,
        sb_prune.ExactBudget,
        sb_prune.HardConcrete,
        sb_prune.LayerSettings,
        sb_prune.LayerwiseDistillation,
        sb_prune.LinearSchedule,
        sb_prune.MACBudget,
        sb_prune.ParameterBudget,
        sb_prune.PruningSettings,
        *(getattr(criteria, name) for name in CRITERIA),
        *(getattr(sb_prune, name) for name in STRUCTURES),
    ],
)
def test_every_argument_says_what_it_may_be(part):
    """A new argument is not to be forgotten."""
    parameters = dict(inspect.signature(part).parameters)
    parameters.pop("root", None)
    for parameter in parameters.values():
        assert isinstance(parameter.annotation, Kind), parameter


# ------------------------------------------------------------ what lies on disk


def test_a_key_that_no_checkpoint_has(begin, refused, tmp_path):
    dense = begin(tmp_path).checkpointer
    dense.checkpoints_dir = tmp_path / "dense run"
    dense.checkpoints_dir.mkdir()
    dense.save_checkpoint(meta={"PER": 3.0, "epoch": 2})
    start = "start_from: TMP/dense run\nstart_min_key: WER"
    for name, block in (("pruning", PRUNING), ("layer_pruning", LAYERS)):
        told = refused(name, block, start)
        assert "start_min_key: 'WER' is in no checkpoint of" in told
        assert "write one of ['PER', 'epoch']" in told


@pytest.mark.parametrize(
    "content, told",
    [
        (b"\x89PNG\xff\xfe\x00", "is no YAML ('utf-8' codec can't decode"),
        (b"a: [1, 2", "is no YAML (while parsing a flow sequence"),
        (b"# nothing yet", "is empty; write the YAML of the dense model"),
        (b"Transformer: 3", "Transformer must be a !new: of the stock class"),
    ],
)
def test_a_wrong_inference_yaml(refused, tmp_path, content, told):
    (tmp_path / "dense.yaml").write_bytes(content)
    written = "inference: TMP/dense.yaml\nexport_folder: TMP/out"
    for name, block in (("pruning", PRUNING), ("layer_pruning", LAYERS)):
        message = refused(name, block, written)
        assert (
            message.startswith("inference: TMP/dense.yaml") and told in message
        )


def test_an_export_folder_inside_a_file(refused, tmp_path):
    (tmp_path / "notes").write_text("years of work")
    written = "inference: a\nexport_folder: TMP/notes/export"
    told = refused("pruning", PRUNING, written)
    assert "cannot be made, as TMP/notes is a file; write a folder" in told


def test_a_start_that_is_not_there(refused):
    for name, block in (("pruning", PRUNING), ("layer_pruning", LAYERS)):
        told = refused(name, block, "start_from: TMP/no", FileNotFoundError)
        assert "start_from: TMP/no does not exist; write the save" in told


# ------------------------------------------------------------- blocks as such


@pytest.mark.parametrize(
    "written, told",
    [
        ("gates: {bound: -1}", "pruning: gates: bound: -1; write a number ab"),
        (
            "targt: 0.5",
            "targt: PruningSettings has no such argument; write target",
        ),
        ("schedule: {start: '0.1'}", "pruning: schedule: start: '0.1'; write"),
        ("score: !name:sb_prune.taylor_score", "a score leaves nothing to le"),
    ],
)
def test_a_preset_is_checked_like_any_block(begin, tmp_path, written, told):
    yaml = f"""
pruning: !apply:sb_prune.preset
    name: conformer_l0
    module: Transformer
    target: 0.5
    prune_epochs: 2
    {written}
"""
    with pytest.raises(ValueError) as caught:
        begin(tmp_path, **load_hyperpyyaml(yaml))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "hparams, told",
    [
        (
            "pruning:",
            "pruning: None is no mapping; write one line `key: value`",
        ),
        ("pruning:", "or delete pruning to train without it"),
        ("pruning: True", "pruning: True is no mapping"),
        ("pruning: [module]", "pruning: ['module'] is no mapping"),
        ("pruning: conformer_l0", "pruning: 'conformer_l0' is no mapping"),
        ("pruning: {}", "pruning: module, structures, target, prune_epochs, s"),
        ("pruning: {target: 0.5}", "pruning: module, structures, prune_epochs"),
        ("layer_pruning:", "layer_pruning: None is no mapping"),
        ("layer_pruning: {module: a}", "structures, criterion missing; write"),
        (
            "prunning: {target: 0.5}",
            "prunning: nothing reads a block of this n",
        ),
        ("prunning: {target: 0.5}", "; write pruning:"),
        ("pruning_: {module: a}", "; write pruning:"),
        ("Pruning: {module: a}", "; write pruning:"),
        ("pruing:", "; write pruning:"),
        ("layerpruning: {module: a}", "; write layer_pruning:"),
        ("layers_pruning: {module: a}", "; write layer_pruning:"),
    ],
)
def test_what_is_no_block(begin, tmp_path, hparams, told):
    with pytest.raises(ValueError) as caught:
        begin(tmp_path, **load_hyperpyyaml(hparams))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "hparams",
    [
        "pruned_folder: results/pruned",
        "pruning_folder: results/pruned",
        "pruned: {a: 1}",
        "running: {mean: 0.0}",
        "layer_tuning: {rate: 0.1}",
        "prunings: 3",
        "training: {target: 3, module: a}",
    ],
)
def test_keys_of_a_recipe_are_its_own(begin, tmp_path, hparams):
    brain = begin(tmp_path, **load_hyperpyyaml(hparams))
    assert not brain.pruning.has_phases


# -------------------------------------------------- what users write themselves


class Rise:
    """A schedule of a user's own: no annotation, any keyword."""

    def __init__(self, **options):
        self.steps = options["steps"]
        self.power = options.get("power", 1)

    def fraction(self, step):
        return min(step / self.steps, 1.0) ** self.power


def declare_heads(root, *args, **kwargs):
    from sb_prune import conformer_structures

    return conformer_structures(root, kinds=["heads", "ffn_units"])


class ByName:
    """A score of a user's own: an object that is called."""

    def __call__(self, pruner):
        return torch.arange(pruner.declaration.total_units).float()


def make_optimizer(parameters, rate="fast"):
    return torch.optim.SGD(parameters, lr={"fast": 1.0}[rate])


def test_parts_of_a_users_own(begin, tmp_path):
    block = {
        **load_hyperpyyaml(PRUNING),
        "structures": partial(declare_heads, anything=3),
        "schedule": partial(Rise, power=2),
        "first_score": ByName(),
        "gate_optimizer": partial(make_optimizer, rate="fast"),
    }
    pruner = begin(tmp_path, pruning=block).pruning.steps.pruner
    assert pruner.schedule.power == 2
    assert isinstance(pruner.optimizer, torch.optim.SGD)


def test_whole_numbers_are_numbers(begin, tmp_path):
    gates = "gates: !name:sb_prune.HardConcrete {bound: 12, temperature: 1}"
    block = load_hyperpyyaml(PRUNING + gates)
    assert begin(tmp_path, pruning=block).pruning.steps.pruner.gates.bound == 12


@pytest.mark.parametrize(
    "score, told",
    [
        (
            torch.mean,
            "score: mean cannot take an object of ScorePruner (mean",
        ),
        (lambda pruner: 3.0, "gives 3.0; write a function that gives a tensor"),
        (lambda pruner: torch.ones(2), "one number for each of"),
    ],
)
def test_scores_that_are_none(begin, tmp_path, score, told):
    block = {**load_hyperpyyaml(PRUNING), "score": score}
    brain = begin(tmp_path, pruning=block)
    with pytest.raises(ValueError) as caught:
        brain.pruning.steps.pruner.plan(0.3)
    assert told in str(caught.value)


def test_how_often_a_score_chooses(begin, tmp_path):
    score = "score: !name:sb_prune.taylor_score\n"
    block = load_hyperpyyaml(PRUNING + score + "score_every: 7")
    assert begin(tmp_path, pruning=block).pruning.steps.pruner.every == 7
