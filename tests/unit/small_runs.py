"""Runs of a second, of small recipes of several families.

A `Model` says what a recipe trains and how it is published; `train` runs it
like a train.py with a `pruning` block, or without any.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import (
    Cut,
    conformer_structures,
    front_end_structures,
    pruned,
    wav2vec2_structures,
)
from sb_prune.declare.roots import root_of
from sb_prune.learn.budgets import ParameterBudget
from sb_prune.learn.fitting import leaf_prices

LENGTHS = torch.tensor([1.0, 0.7])
CONFORMER = """
Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    tgt_vocab: 4
    input_size: 6
    d_model: 16
    nhead: 4
    num_encoder_layers: 3
    num_decoder_layers: 0
    d_ffn: 32
    kernel_size: 5
    dropout: 0.0
    encoder_module: conformer
    attention_type: RelPosMHAXL
    normalize_before: True
    causal: False

lin: !new:torch.nn.Linear
    in_features: 16
    out_features: 3

model: !new:torch.nn.ModuleList
    - [!ref <Transformer>, !ref <lin>]

modules:
    encoder: !ref <model>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
"""  # noqa: E501
FRONT_END = """
CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: (2, 30, 12)
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: (6, 4)
    kernel_sizes: (3, 3)
    strides: (2, 2)
    residuals: (False, False)
    dropout: 0.0
"""
LOBES = {
    "Wav2Vec2": wav2vec2.Wav2Vec2,
    "Hubert": hubert.HuBERT,
    "WavLM": wavlm.WavLM,
}


class Recipe(sb.Brain):
    """Any chain of modules that regresses its targets."""

    def compute_forward(self, batch, stage):
        return self.hparams.compute(self.modules, batch)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch["y"]).square().mean()


@dataclass(frozen=True)
class Model:
    """What a recipe trains, and how it is published.

    Arguments
    ---------
    yaml : str
        The inference YAML of the dense model.
    entries : list of str
        Its keys in the recipe's `modules`.
    module : str or list of str
        Those that are pruned.
    structures : callable or list of callable
    compute : callable
        Modules, batch -> predictions.
    shape : tuple of int
        Of a batch of inputs.
    """

    yaml: str
    entries: list
    module: object
    structures: object
    compute: Callable
    shape: tuple

    def build(self):
        """Makes the dense modules, by name."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = load_hyperpyyaml(self.yaml)
        return {entry: made[entry] for entry in self.entries}

    def dense(self):
        """Makes the root of the dense modules that are pruned."""
        return root_of(self.build(), self.module)

    def batches(self):
        """Four batches, always the same."""
        generator = torch.Generator().manual_seed(1)
        return [
            {
                "x": torch.randn(self.shape, generator=generator),
                "y": torch.randn(2, 1, 3, generator=generator),
                "lengths": LENGTHS,
            }
            for _ in range(4)
        ]

    @torch.no_grad()
    def predictions(self, modules):
        """What modules, in eval mode, make of the first batch."""
        modules = torch.nn.ModuleDict({e: modules[e] for e in self.entries})
        return self.compute(modules.eval(), self.batches()[0])


def conformer():
    """A Conformer of three layers and a Linear."""

    def compute(modules, batch):
        encoded, _ = modules["Transformer"](batch["x"], None, batch["lengths"])
        return modules["lin"](encoded)

    return Model(
        CONFORMER,
        ["Transformer", "lin"],
        "Transformer",
        conformer_structures,
        compute,
        (2, 13, 6),
    )


def behind_front_end():
    """A convolutional front-end, a Conformer and a Linear."""

    def compute(modules, batch):
        front = modules["CNN"](batch["x"])
        encoded, _ = modules["Transformer"](front, None, batch["lengths"])
        return modules["lin"](encoded)

    yaml = FRONT_END + CONFORMER.replace("input_size: 6", "input_size: 12")
    return Model(
        yaml.replace("[!ref <Tr", "[!ref <CNN>, !ref <Tr"),
        ["CNN", "Transformer", "lin"],
        ["CNN", "Transformer"],
        [front_end_structures, conformer_structures],
        compute,
        (2, 24, 12),
    )


def encoder(source, family="Wav2Vec2"):
    """A Hugging Face lobe that loads `source`, and a Linear."""

    def compute(modules, batch):
        encoded = modules["wav2vec2"](batch["x"], batch["lengths"])
        return modules["lin"](encoded)

    stock = LOBES[family]
    name = f"{stock.__module__}.{stock.__name__}".removeprefix(
        "speechbrain.integrations.huggingface."
    )
    yaml = Path(__file__).with_name("tiny_wav2vec2.yaml").read_text()
    yaml = yaml.replace("!PLACEHOLDER", str(source))
    return Model(
        yaml.replace("LOBE", name).replace(
            "output_norm: True", "output_norm: True\n    freeze: False"
        ),
        ["wav2vec2", "lin"],
        "wav2vec2",
        wav2vec2_structures,
        compute,
        (2, 700),
    )


def make(folder, model, blocks, modules=None, epochs=2):
    """Makes the Brain of a recipe.

    Arguments
    ---------
    folder : Path
        The output folder.
    model : Model
    blocks : dict
        Further content of the YAML, with the blocks of sb_prune.
    modules : dict, optional
        By default those of the model.
    epochs : int
    """
    modules = modules or model.build()
    saved = torch.nn.ModuleList([modules[e] for e in model.entries])
    counter = EpochCounter(epochs)
    return pruned(Recipe)(
        modules=modules,
        opt_class=partial(torch.optim.Adam, lr=0.01),
        hparams={
            "model": saved,
            "compute": model.compute,
            "epoch_counter": counter,
            **blocks,
        },
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=Checkpointer(
            folder / "save", {"model": saved, "counter": counter}
        ),
    )


def fit(brain, model):
    """Trains and evaluates; returns the Brain in eval mode."""
    loader = {"batch_size": None}
    counter = brain.hparams.epoch_counter
    brain.fit(counter, model.batches(), train_loader_kwargs=loader)
    brain.evaluate(model.batches(), test_loader_kwargs=loader)
    brain.modules.eval()
    return brain


def pruning(folder, model, target, **changes):
    """The block of a run that prunes a model in two epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    yaml = folder / "inference.yaml"
    yaml.write_text(model.yaml)
    return {
        "module": model.module,
        "structures": model.structures,
        "target": target,
        "prune_epochs": 1,
        "schedule_steps": 3,
        "inference": str(yaml),
        "export_folder": str(folder / "export"),
        **changes,
    }


def prune(folder, model, target, modules=None, **changes):
    """Prunes a model; the export lies in `export`.

    Arguments
    ---------
    folder : Path
        The output folder.
    model : Model
    target : float
    modules : dict, optional
        By default those of the model.
    changes : dict
        In the `pruning` block.

    Returns
    -------
    Brain
    """
    block = pruning(folder, model, target, **changes)
    return fit(make(folder, model, {"pruning": block}, modules), model)


def landing(export, dense, target, budget=ParameterBudget):
    """How far a pruning landed from its target, counted from a dense model.

    Arguments
    ---------
    export : Export
    dense : torch.nn.Module
        The root of the original dense modules.
    target : float
    budget : type

    Returns
    -------
    float
        Unused budget, in units of the cheapest leaf that is left; below 1 is
        as close as a plan can be.
    """
    step = export.steps[-1]
    cuts = [edit for edit in export.history.edits if isinstance(edit, Cut)]
    original = cuts[-1].structures(dense)
    (group,) = budget(target).groups(step.declaration, original=original)
    left = float(group.cost.of_kept(step.plan.kept_counts(step.declaration)))
    unused = group.dense * (1 - target) - left
    assert unused >= -1e-6 * group.dense, "over the budget"
    prices = leaf_prices(step.declaration, group, step.plan)
    return unused / min(prices.values())
