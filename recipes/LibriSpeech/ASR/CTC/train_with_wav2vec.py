#!/usr/bin/env python3
"""Fine-tunes a self-supervised encoder with CTC on LibriSpeech.

A Hugging Face encoder (wav2vec 2.0, HuBERT or WavLM) and a small network on
top of it, each with an optimizer of its own. Decoding is greedy, without a
language model.

To run this recipe:
> python train_with_wav2vec.py hparams/finetune.yaml --data_folder=/path/to/LibriSpeech

In minutes on a CPU, with synthesised speech and a small encoder (README.md):
> python train_with_wav2vec.py hparams/demo_finetune.yaml --data_folder=/path/to/demo --wav2vec2_hub=/path/to/small_wav2vec2
"""  # noqa: E501

import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.distributed import if_main_process, run_on_main

from sb_prune import pruned
from sb_prune.lobes import save_encoder


class ASR(sb.Brain):
    """CTC on a self-supervised encoder; two optimizers."""

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities and, in evaluation, tokens."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        feats = self.encode(wavs, wav_lens)
        logits = self.modules.ctc_lin(self.modules.enc(feats))
        p_ctc = logits.log_softmax(dim=-1)
        hyps = None
        if stage != sb.Stage.TRAIN:
            hyps = ctc_greedy_decode(p_ctc, wav_lens, self.hparams.blank_index)
        return p_ctc, wav_lens, hyps

    def encode(self, wavs, wav_lens):
        """Features of the encoder."""
        return self.modules.wav2vec2(wavs, wav_lens)

    def compute_objectives(self, predictions, batch, stage):
        """The loss, and the word errors in evaluation."""
        p_ctc, wav_lens, hyps = predictions
        if stage != sb.Stage.TRAIN:
            self.wer_metric.append(
                batch.id,
                [self.tokenizer.decode_ids(hyp).split(" ") for hyp in hyps],
                [wrd.split(" ") for wrd in batch.wrd],
            )
        return self.hparams.ctc_cost(
            p_ctc, batch.tokens.data, wav_lens, batch.tokens.lengths
        )

    def init_optimizers(self):
        """One optimizer for the head, one for the encoder unless frozen."""
        self.model_optimizer = self.hparams.model_opt_class(
            self.hparams.model.parameters()
        )
        self.optimizers_dict = {"model_optimizer": self.model_optimizer}
        if not self.hparams.freeze_wav2vec:
            self.wav2vec_optimizer = self.hparams.wav2vec_opt_class(
                self.modules.wav2vec2.parameters()
            )
            self.optimizers_dict["wav2vec_optimizer"] = self.wav2vec_optimizer
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(name, optimizer)

    def freeze_optimizers(self, optimizers):
        """The head learns alone until it has something to say."""
        if self.optimizer_step >= self.hparams.freeze_wav2vec_steps:
            return optimizers
        return {"model_optimizer": self.model_optimizer}

    def optimizers_step(self):
        """A step; no gradient is kept for later."""
        super().optimizers_step()
        # SpeechBrain clears those of the active optimizers only: what a
        # frozen encoder gathered would all go into its first step.
        for optimizer in self.optimizers_dict.values():
            optimizer.zero_grad(set_to_none=True)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rates of the coming step."""
        # Beyond total_steps the schedules would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        self.hparams.lr_annealing_model(self.model_optimizer, step)
        if not self.hparams.freeze_wav2vec:
            self.hparams.lr_annealing_wav2vec(self.wav2vec_optimizer, step)

    def on_stage_start(self, stage, epoch=None):
        """Starts counting word errors."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and keeps the checkpoint with the fewest word errors."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["WER"] = self.wer_metric.summarize("error_rate")
        if stage == sb.Stage.VALID:
            rates = {
                f"lr_{name.removesuffix('_optimizer')}": rate_of(optimizer)
                for name, optimizer in self.optimizers_dict.items()
            }
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, **rates},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"], "epoch": epoch},
                min_keys=["WER"],
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        if if_main_process():
            with open(self.test_wer_file, "w", encoding="utf-8") as fout:
                self.wer_metric.write_stats(fout)


def rate_of(optimizer):
    """The learning rate of an optimizer's first parameter group."""
    return optimizer.param_groups[0]["lr"]


def dataio_prepare(hparams):
    """Datasets, the sampler of training batches, and the tokenizer.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.

    Returns
    -------
    train_data, valid_data : DynamicItemDataset
        For `fit`.
    test_data : dict of str to DynamicItemDataset
        For `evaluate`, by split.
    train_sampler : DynamicBatchSampler
        Batches of utterances of about the same length.
    tokenizer : sentencepiece.SentencePieceProcessor
        Between words and tokens.

    Raises
    ------
    ValueError
        If `output_neurons` is not the number of tokens, which for characters
        follows from the transcripts.
    """
    # One process trains it; the others must not find half of it.
    tokenizer = run_on_main(hparams["tokenizer"]).sp
    tokens, outputs = tokenizer.vocab_size(), hparams["output_neurons"]
    if tokens != outputs:
        raise ValueError(
            f"output_neurons: {outputs}, but the tokenizer made from the "
            f"transcripts has {tokens} tokens; write {tokens}"
        )

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(wrd):
        return torch.LongTensor(tokenizer.encode_as_ids(wrd))

    def load(csv_file):
        return DynamicItemDataset.from_csv(
            csv_file, replacements={"data_root": hparams["data_folder"]}
        ).filtered_sorted(sort_key="duration")

    train_data = load(hparams["train_csv"])
    valid_data = load(hparams["valid_csv"])
    test_data = {Path(name).stem: load(name) for name in hparams["test_csv"]}

    datasets = [train_data, valid_data, *test_data.values()]
    add_dynamic_item(datasets, audio_pipeline)
    add_dynamic_item(datasets, text_pipeline)
    set_output_keys(datasets, ["id", "sig", "wrd", "tokens"])
    train_sampler = DynamicBatchSampler(
        train_data, **hparams["dynamic_batch_sampler_train"]
    )
    return train_data, valid_data, test_data, train_sampler, tokenizer


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
    if "encoder_folder" in hparams and not asr_brain.debug:
        run_on_main(
            save_encoder, [hparams["wav2vec2"], hparams["encoder_folder"]]
        )
