"""A whole pruning run on the spare device: python device_run.py FAMILY FOLDER.

Dense training, pruning with a milestone, an interruption and its resumption,
cut, fine-tuning, evaluation, export, and a second, shorter pruning from that.
Prints, as JSON, where sb_prune made the CPU wait for the device in the steps of
the prune phases. With --mutant NAME a tensor is left on the CPU on purpose.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
import transformers
from hyperpyyaml import load_hyperpyyaml
from spare_device import Spare, device
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

import sb_prune
from sb_prune.cut.masking import GateValues
from sb_prune.distillation.layerwise import LayerwiseDistillation
from sb_prune.learn.gates import HardConcrete

BATCHES, EPOCHS = 3, 3
TRANSFORMER = """
Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    tgt_vocab: 7
    input_size: 6
    d_model: 16
    nhead: 4
    num_encoder_layers: 2
    num_decoder_layers: {decoder_layers}
    d_ffn: 32
    kernel_size: 5
    encoder_module: conformer
    attention_type: RelPosMHAXL
    normalize_before: True
    causal: False
"""  # noqa: E501
LOBE = """
source: !PLACEHOLDER

wav2vec2: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
    source: !ref <source>
    save_path: !ref <source>
    output_norm: True
    freeze: False
    freeze_feature_extractor: False
"""
REST = """
lin: !new:torch.nn.Linear
    in_features: 16
    out_features: 3

modules:
    encoder: !ref <{entry}>
    lin: !ref <lin>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        {entry}: !ref <{entry}>
        lin: !ref <lin>
"""


def features(generator):
    return torch.randn(2, 13, 6, generator=generator)


def conformer(modules, x, tokens):
    encoded, _ = modules.Transformer(x, None)
    return encoded


def decoder(modules, x, tokens):
    _, decoded = modules.Transformer(x, tokens)
    return decoded


def wav2vec2(modules, x, tokens):
    lengths = torch.tensor([1.0, 0.7]).to(x.device)
    return modules.wav2vec2(x, lengths)


# entry of `modules`, YAML, structures, forward, input
FAMILIES = {
    "conformer": (
        "Transformer",
        TRANSFORMER.format(decoder_layers=0),
        sb_prune.conformer_structures,
        conformer,
        features,
    ),
    "decoder": (
        "Transformer",
        TRANSFORMER.format(decoder_layers=2),
        sb_prune.encoder_decoder_structures,
        decoder,
        features,
    ),
    "wav2vec2": (
        "wav2vec2",
        LOBE,
        partial(
            sb_prune.wav2vec2_structures,
            kinds=[
                "front_end_channels",
                "layers",
                "ffn_modules",
                "attention_modules",
                "ffn_units",
                "heads",
                "query_key_dims",
                "value_dims",
            ],
        ),
        wav2vec2,
        lambda generator: torch.randn(2, 700, generator=generator),
    ),
}


class Interrupted(Exception):
    """In place of a kill, which would end this process."""


class Recipe(sb.Brain):
    """Regresses random targets."""

    waits = ()
    interrupt_at = None
    steps = 0

    def compute_forward(self, batch, stage):
        x, tokens = (batch[key].to(self.device) for key in ("x", "tokens"))
        return self.modules.lin(self.hparams.forward(self.modules, x, tokens))

    def compute_objectives(self, predictions, batch, stage):
        target = batch["y"].to(self.device)
        return (predictions.mean(1) - target).square().mean()

    def fit_batch(self, batch):
        spare = Spare.current
        before = len(spare.waits)
        loss = super().fit_batch(batch)
        if self.pruning.steps.pruner is not None:
            self.waits += (spare.waits[before:],)
            self.steps += 1
            if self.steps == self.interrupt_at:
                raise Interrupted
        return loss

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss})


def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": FAMILIES[given.family][-1](generator),
            "tokens": torch.randint(1, 7, (2, 4), generator=generator),
            "y": torch.randn(2, 3, generator=generator),
        }
        for _ in range(BATCHES)
    ]


def dense_encoder(folder):
    """A Hugging Face folder with a small wav2vec 2.0."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        conv_dim=(6, 5, 4),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


def make_brain(folder, epochs=EPOCHS, **pruning):
    entry, model, structures, forward, _ = FAMILIES[given.family]
    yaml = given.folder / "inference.yaml"
    yaml.write_text(model + REST.format(entry=entry))
    hparams = {"source": str(given.folder / "source")}
    built = load_hyperpyyaml(
        yaml.read_text(), hparams if given.family == "wav2vec2" else None
    )
    modules = {name: built[name] for name in (entry, "lin")}
    hparams |= {"forward": forward}
    if pruning:
        hparams["pruning"] = {
            "module": entry,
            "structures": structures,
            "target": 0.4,
            "prune_epochs": 2,
            "schedule_steps": 4,
            "gate_optimizer": partial(torch.optim.Adam, lr=0.1),
            "gates": HardConcrete,
            "first_score": sb_prune.magnitude_score,
            "distillation": partial(LayerwiseDistillation, outputs=["lin"]),
            "inference": str(yaml),
            "export_folder": str(folder / "export"),
            "milestones": [0.2],
            **pruning,
        }
    counter = EpochCounter(epochs)
    recoverables = {
        "model": torch.nn.ModuleList(modules.values()),
        "counter": counter,
    }
    brain = sb_prune.pruned(Recipe)(
        modules=modules,
        opt_class=partial(torch.optim.Adam, lr=0.002),
        hparams=hparams,
        run_opts={"device": str(device()), "noprogressbar": True},
        checkpointer=Checkpointer(folder / "save", recoverables),
    )
    return brain, counter


def fit(brain, counter):
    loader = {"batch_size": None}
    data = batches()
    brain.fit(
        counter,
        data,
        data,
        train_loader_kwargs=loader,
        valid_loader_kwargs=loader,
    )
    brain.evaluate(data, test_loader_kwargs=loader)


def leave_on_cpu(mutant):
    """Two mistakes that no run on a CPU shows."""
    if mutant == "gates":
        stock = GateValues.set_
        GateValues.set_ = lambda self, values, *more: stock(
            self, values.cpu(), *more
        )
    elif mutant == "distillation":
        stock_losses = LayerwiseDistillation.losses
        LayerwiseDistillation.losses = lambda self, *args: {
            name: value + torch.zeros(1)
            for name, value in stock_losses(self, *args).items()
        }


def main():
    if given.mutant:
        leave_on_cpu(given.mutant)
    if given.family == "wav2vec2":
        dense_encoder(given.folder / "source")
    with Spare():
        fit(*make_brain(given.folder / "dense", epochs=1))
        start = {"start_from": str(given.folder / "dense/save")}
        brain, counter = make_brain(given.folder / "pruned", **start)
        brain.interrupt_at = BATCHES + 2
        try:
            fit(brain, counter)
            raise AssertionError("not interrupted")
        except Interrupted:
            brain, counter = make_brain(given.folder / "pruned", **start)
            fit(brain, counter)
        again, counter = make_brain(
            given.folder / "again",
            epochs=2,
            start_from=str(given.folder / "pruned/export"),
            target=0.6,
            milestones=[0.5],
            prune_epochs=1,
            schedule_steps=2,
        )
        fit(again, counter)
    last = again.waits[-1:]  # those before score units, export a milestone
    print(json.dumps({"waits": [*brain.waits, *last]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutant")
    given = parser.parse_args()
    main()
