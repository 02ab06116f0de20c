#!/usr/bin/env python3
"""Tells words or speakers apart, with a fine-tuned wav2vec 2.0, HuBERT or WavLM.

The encoder's output, averaged over time, goes into one linear layer. With a
`layer_pruning` block the encoder is shortened first, by what its layers know
of the task; with a `pruning` block it is pruned.

To run this recipe:
> python train.py hparams/convexity.yaml --wav2vec2_hub=facebook/wav2vec2-base --data_folder=/path/to/speech_commands_v0.02
"""  # noqa: E501

import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speech_commands_prepare import prepare_speech_commands
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main

from sb_prune import pruned


class Classifier(sb.Brain):
    """One answer for each utterance."""

    def compute_forward(self, batch, stage):
        """Log-probabilities of the classes, (batch, 1, classes)."""
        wavs, wav_lens = batch.to(self.device).sig
        features = self.modules.wav2vec2(wavs, wav_lens)
        pooled = self.hparams.pooling(features, wav_lens)
        return self.modules.classifier(pooled).log_softmax(-1)

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy; in evaluation the errors too."""
        classes, lengths = batch.encoded_label
        if stage != sb.Stage.TRAIN:
            self.accuracy.append(predictions, classes, lengths)
        return sb.nnet.losses.nll_loss(predictions, classes)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        # Beyond total_steps the schedule would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        self.hparams.lr_annealing(self.optimizer, step)

    def on_stage_start(self, stage, epoch=None):
        """Starts counting errors."""
        self.accuracy = self.hparams.accuracy_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and keeps the checkpoint with the fewest errors."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        error = 100 * (1 - self.accuracy.summarize())
        stats = {"loss": stage_loss, "error": error}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"error": error, "epoch": epoch}, min_keys=["error"]
            )
        else:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prepare(hparams):
    """Datasets, and the sampler of training batches.

    Arguments
    ---------
    hparams : dict
        The loaded YAML; its label encoder learns the classes.

    Returns
    -------
    train_data, valid_data, test_data : DynamicItemDataset
        For `fit` and `evaluate`.
    train_sampler : DynamicBatchSampler
        Batches of so many seconds, of utterances of about the same length.
    """
    datasets = [
        DynamicItemDataset.from_csv(
            hparams[csv_file],
            replacements={"data_root": hparams["data_folder"]},
        ).filtered_sorted(sort_key="duration")
        for csv_file in ("train_csv", "valid_csv", "test_csv")
    ]
    train_data, valid_data, test_data = datasets
    label_encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes(hparams["label"])
    @sb.utils.data_pipeline.provides("encoded_label")
    def label_pipeline(label):
        return torch.LongTensor([label_encoder.encode_label(label)])

    add_dynamic_item(datasets, audio_pipeline)
    add_dynamic_item(datasets, label_pipeline)
    label_encoder.load_or_create(
        path=hparams["label_encoder_file"],
        from_didatasets=[train_data],
        output_key=hparams["label"],
        # what training lacks is wrong whatever the answer
        special_labels={"unk_label": "<unk>"},
    )
    label_encoder.expect_len(hparams["output_neurons"])
    set_output_keys(datasets, ["id", "sig", "encoded_label"])
    train_sampler = DynamicBatchSampler(
        train_data, **hparams["dynamic_batch_sampler_train"]
    )
    return *datasets, train_sampler


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    run_on_main(
        prepare_speech_commands,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["output_folder"],
            "label": hparams["label"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    train_data, valid_data, test_data, train_sampler = dataio_prepare(hparams)

    brain = pruned(Classifier)(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    # Without this, one process repeats the same batches in each epoch.
    brain.train_sampler = train_sampler

    brain.fit(
        brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs={
            "batch_sampler": train_sampler,
            **hparams["train_dataloader_opts"],
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    brain.evaluate(
        test_data,
        min_key="error",
        test_loader_kwargs=hparams["valid_dataloader_opts"],
    )
