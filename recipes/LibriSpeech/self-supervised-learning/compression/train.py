#!/usr/bin/env python3
"""Compresses a self-supervised encoder on audio alone, for any task.

The encoder (wav2vec 2.0, HuBERT or WavLM) learns to give the hidden states of a
frozen teacher. With a `pruning` block it is the teacher itself that is pruned
meanwhile; without one it is a student that the YAML builds.

To run this recipe:
> python train.py hparams/prune_fine_grained.yaml --data_folder=/path/to/LibriSpeech
"""  # noqa: E501

import sys

import speechbrain as sb
import torch
from audio_prepare import prepare_audio
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import get_rank, run_on_main

from sb_prune import pruned
from sb_prune.distillation.masked import draw_spans
from sb_prune.lobes import save_encoder
from sb_prune.run.resume import make_resumable_


class Compression(sb.Brain):
    """A student's hidden states follow those of a teacher."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # not one of `modules`: it neither learns nor is saved
        self.hparams.teacher.to(self.device)
        self.resume_point = None

    def on_fit_start(self):
        """Lets a student's run survive a kill, as a pruned encoder's does."""
        if not self.pruning.has_phases:
            self.resume_point = make_resumable_(self.checkpointer)
        super().on_fit_start()

    def compute_forward(self, batch, stage):
        """Hidden states of both, (layers + 1, batch, frames, width)."""
        wavs, wav_lens = batch.to(self.device).sig
        if hasattr(self.hparams, "mask_share"):
            return self.forward_masked(wavs, wav_lens, stage), wav_lens
        student = self.modules.wav2vec2(wavs, wav_lens)
        with torch.no_grad():
            teacher = self.hparams.teacher(wavs, wav_lens)
        return (student, teacher), wav_lens

    def forward_masked(self, wavs, wav_lens, stage):
        """Those of the masked input, the teacher's of both inputs, the mask.

        Masks depend on seed, batch and process, in evaluation on seed and
        process.
        """
        steps = (0, 0)
        if stage == sb.Stage.TRAIN:  # of which several may accumulate
            steps = (self.optimizer_step, self.step)
        seed = self.hparams.seed
        for number in (*steps, get_rank() or 0):
            seed = (seed * 1_000_003 + number) % 2**63
        generator = torch.Generator().manual_seed(seed)
        mask = draw_spans(
            len(wavs),
            self.hparams.teacher.speech_frames(wavs.shape[1]),
            self.hparams.mask_share,
            self.hparams.mask_length,
            generator,
        ).to(self.device)
        student = self.modules.wav2vec2(wavs, wav_lens, mask)
        with torch.no_grad():
            masked = unmasked = self.hparams.teacher(wavs, wav_lens)
            if mask.any():
                masked = self.hparams.teacher(wavs, wav_lens, mask)
        return student[1:], masked[1:], unmasked[1:], mask

    def compute_objectives(self, predictions, batch, stage):
        """The sum of the distillation's parts, whose means are logged."""
        states, wav_lens = predictions
        samples = (wav_lens * batch.sig.data.shape[1]).round().long().tolist()
        frames = [self.hparams.teacher.speech_frames(n) for n in samples]
        speech = length_to_mask(
            torch.tensor(frames, device=self.device), states[0].shape[2]
        )
        parts = self.modules.distillation(*states, padded=~speech.bool())
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value.detach())
        return sum(parts.values())

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        if self.resume_point is not None:
            self.resume_point.begin_batch_()
        # Beyond total_steps the schedule would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        self.hparams.lr_annealing(self.optimizer, step)

    def on_stage_start(self, stage, epoch=None):
        """Starts collecting the parts of the loss."""
        self.parts = {}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and keeps the checkpoint that is closest to the teacher."""
        means = {k: float(torch.stack(v).mean()) for k, v in self.parts.items()}
        stats = {"loss": stage_loss, **means}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
        elif stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"loss": stage_loss, "epoch": epoch}, min_keys=["loss"]
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
        The loaded YAML.

    Returns
    -------
    train_data, valid_data : DynamicItemDataset
        For `fit`.
    train_sampler : DynamicBatchSampler
        Batches of so many seconds, of utterances of about the same length.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    train_data, valid_data = (
        DynamicItemDataset.from_csv(
            hparams[csv_file],
            replacements={"data_root": hparams["data_folder"]},
        ).filtered_sorted(
            sort_key="duration", key_max_value={"duration": longest}
        )
        for csv_file, longest in (
            ("train_csv", hparams["longest"]),
            ("valid_csv", float("inf")),
        )
    )
    add_dynamic_item([train_data, valid_data], audio_pipeline)
    set_output_keys([train_data, valid_data], ["id", "sig"])
    train_sampler = DynamicBatchSampler(
        train_data, **hparams["dynamic_batch_sampler_train"]
    )
    return train_data, valid_data, train_sampler


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
        prepare_audio,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["output_folder"],
            "train_splits": hparams["train_splits"],
            "valid_splits": hparams["valid_splits"],
            "shortest": hparams["shortest"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    train_data, valid_data, train_sampler = dataio_prepare(hparams)

    brain = pruned(Compression)(
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
        valid_data,
        min_key="loss",
        test_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    if "encoder_folder" in hparams and not brain.debug:
        run_on_main(
            save_encoder, [hparams["wav2vec2"], hparams["encoder_folder"]]
        )
