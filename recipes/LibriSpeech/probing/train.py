#!/usr/bin/env python3
"""Measures what a frozen speech encoder knows, as SUPERB does.

A learnt mean of the encoder's hidden states goes into a light head, which is
trained for phonemes (pr), letters (asr), keywords (ks), intents (ic) or speakers
(sid); the encoder is not. Wherever a label is one unit, there is one answer for
each utterance; otherwise the units are read with CTC.

To run this recipe:
> python train.py hparams/pr.yaml --wav2vec2_hub=facebook/hubert-base-ls960 --data_folder=/path/to/LibriSpeech

Several probes of several encoders, and a table: run_probes.py.
"""  # noqa: E501

import json
import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.distributed import if_main_process, run_on_main

from sb_prune.support.disk import whole_file
from sb_prune.support.parallel import end_with_idle_threads

BLANK = 0


class Probe(sb.Brain):
    """A light head on a frozen encoder; a subclass says what it answers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # not one of `modules`: it neither learns nor is saved
        self.hparams.wav2vec2.to(self.device)

    def compute_forward(self, batch, stage):
        """Log-probabilities of the units, (batch, frames or 1, units)."""
        wavs, wav_lens = batch.to(self.device).sig
        with torch.no_grad():
            states = self.hparams.wav2vec2(wavs, wav_lens)
        features = self.modules.weighting(states)
        logits = self.modules.head(features, wav_lens)
        # outputs that stand for no unit of the data are no answers
        return logits[..., : len(self.label_encoder)].log_softmax(-1)

    def on_stage_start(self, stage, epoch=None):
        """Starts counting errors."""
        self.errors = self.hparams.errors()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and keeps the checkpoint with the fewest errors."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        error = self.error_rate()
        stats = {"loss": stage_loss, "error": error}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"error": error, "epoch": epoch}, min_keys=["error"]
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        if if_main_process():
            self.write_score(error)

    def write_score(self, error):
        """What run_probes.py reads: the figure, and what the layers count."""
        parameters = self.hparams.wav2vec2.parameters()
        score = {
            "figure": self.hparams.figure,
            "value": round(error if self.is_error else 100 - error, 2),
            "parameters": sum(p.numel() for p in parameters),
            "layers": self.modules.weighting.weights.tolist(),
        }
        with whole_file(Path(self.hparams.score_file)) as aside:
            aside.write_text(json.dumps(score) + "\n")


class CTCProbe(Probe):
    """Reads units from left to right."""

    is_error = True

    def compute_objectives(self, predictions, batch, stage):
        """CTC; in evaluation the errors too."""
        _, wav_lens = batch.sig
        units, lengths = batch.units
        if stage != sb.Stage.TRAIN:
            self.errors.append(
                batch.id,
                ctc_greedy_decode(predictions, wav_lens, BLANK),
                units,
                target_len=lengths,
                ind2lab=self.label_encoder.decode_ndim,
            )
        return sb.nnet.losses.ctc_loss(
            predictions, units, wav_lens, lengths, BLANK
        )

    def error_rate(self):
        """Insertions, deletions and substitutions: %."""
        return self.errors.summarize("error_rate")


class ClassProbe(Probe):
    """Gives one answer for each utterance."""

    is_error = False

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy; in evaluation the errors too."""
        units, lengths = batch.units
        if stage != sb.Stage.TRAIN:
            self.errors.append(predictions, units, lengths)
        return sb.nnet.losses.nll_loss(predictions, units)

    def error_rate(self):
        """Wrong answers: %."""
        return 100 * (1 - self.errors.summarize())


def dataio_prepare(hparams):
    """Datasets, the units, and the sampler of training batches.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.

    Returns
    -------
    train_data, valid_data, test_data : DynamicItemDataset
        For `fit` and `evaluate`.
    train_sampler : DynamicBatchSampler
        Batches of so many seconds, of utterances of about the same length.
    label_encoder : CTCTextEncoder
        Units and their numbers; 0 is CTC's blank, and no class.
    """
    datasets = [
        DynamicItemDataset.from_csv(
            hparams[csv_file],
            replacements={"data_root": hparams["audio_root"]},
        ).filtered_sorted(sort_key="duration")
        for csv_file in ("train_csv", "valid_csv", "test_csv")
    ]
    train_data, valid_data, test_data = datasets
    label_encoder = CTCTextEncoder()

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("label")
    @sb.utils.data_pipeline.provides("names", "units")
    def label_pipeline(label):
        names = label.split(" ")
        yield names
        yield torch.LongTensor(label_encoder.encode_sequence(names))

    add_dynamic_item(datasets, audio_pipeline)
    add_dynamic_item(datasets, label_pipeline)
    label_encoder.load_or_create(
        path=hparams["label_encoder_file"],
        from_didatasets=[train_data],
        output_key="names",
        special_labels={"blank_label": BLANK, "unk_label": "<unk>"},
        sequence_input=True,
    )
    if len(label_encoder) > hparams["output_neurons"]:
        raise ValueError(
            f"output_neurons: {hparams['output_neurons']}; the training data "
            f"have {len(label_encoder)} units (with the blank); write "
            f"output_neurons: {len(label_encoder)} or more"
        )
    set_output_keys(datasets, ["id", "sig", "units"])
    train_sampler = DynamicBatchSampler(
        train_data, **hparams["dynamic_batch_sampler_train"]
    )
    return *datasets, train_sampler, label_encoder


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    end_with_idle_threads()
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    run_on_main(hparams["prepare"])
    train_data, valid_data, test_data, train_sampler, label_encoder = (
        dataio_prepare(hparams)
    )

    probe_class = CTCProbe if hparams["read_with_ctc"] else ClassProbe
    probe = probe_class(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    probe.label_encoder = label_encoder
    # Without this, one process repeats the same batches in each epoch.
    probe.train_sampler = train_sampler

    probe.fit(
        probe.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs={
            "batch_sampler": train_sampler,
            **hparams["train_dataloader_opts"],
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    probe.evaluate(
        test_data,
        min_key="error",
        test_loader_kwargs=hparams["valid_dataloader_opts"],
    )
