#!/usr/bin/env python3
"""Fine-tunes the encoder of Whisper with CTC on LibriSpeech.

The encoder alone and a small network on top of it, each with an optimizer of
its own. Decoding is greedy, without a language model. Encoder and decoder
together are in ../transformer.

To run this recipe:
> python train_with_whisper.py hparams/finetune_whisper.yaml --data_folder=/path/to/LibriSpeech

To prune what came of it:
> python train_with_whisper.py hparams/prune_whisper.yaml --data_folder=/path/to/LibriSpeech --dense_folder=results/finetune_whisper/1234
"""  # noqa: E501

import sys
from pathlib import Path

import speechbrain as sb
import train_with_wav2vec
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech
from speechbrain.utils.distributed import run_on_main
from train_with_wav2vec import dataio_prepare

from sb_prune import pruned


class ASR(train_with_wav2vec.ASR):
    """CTC on the encoder of Whisper; two optimizers."""

    def encode(self, wavs, wav_lens):
        """Features; `aligned` in the YAML: one for each frame of the audio."""
        return self.modules.whisper(wavs)

    def init_optimizers(self):
        """One optimizer for the head, one for the encoder unless frozen."""
        self.model_optimizer = self.hparams.model_opt_class(
            self.hparams.model.parameters()
        )
        self.optimizers_dict = {"model_optimizer": self.model_optimizer}
        if not self.hparams.freeze_whisper:
            self.whisper_optimizer = self.hparams.whisper_opt_class(
                self.modules.whisper.parameters()
            )
            self.optimizers_dict["whisper_optimizer"] = self.whisper_optimizer
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(name, optimizer)

    def freeze_optimizers(self, optimizers):
        """The head learns alone until it has something to say."""
        if self.optimizer_step >= self.hparams.freeze_whisper_steps:
            return optimizers
        return {"model_optimizer": self.model_optimizer}

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rates of the coming step."""
        # Beyond total_steps the schedules would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        self.hparams.lr_annealing_model(self.model_optimizer, step)
        if not self.hparams.freeze_whisper:
            self.hparams.lr_annealing_whisper(self.whisper_optimizer, step)


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
        prepare_librispeech,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["output_folder"],
            "tr_splits": hparams["train_splits"],
            "dev_splits": hparams["dev_splits"],
            "te_splits": hparams["test_splits"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    train_data, valid_data, test_data, train_sampler, tokenizer = (
        dataio_prepare(hparams)
    )

    asr_brain = pruned(ASR)(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = tokenizer
    # Without this, one process repeats the same batches in each epoch.
    asr_brain.train_sampler = train_sampler

    asr_brain.fit(
        asr_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs={
            "batch_sampler": train_sampler,
            **hparams["train_dataloader_opts"],
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    for name, dataset in test_data.items():
        asr_brain.test_wer_file = Path(
            hparams["output_folder"], f"wer_{name}.txt"
        )
        asr_brain.evaluate(
            dataset,
            min_key="WER",
            test_loader_kwargs=hparams["test_dataloader_opts"],
        )
