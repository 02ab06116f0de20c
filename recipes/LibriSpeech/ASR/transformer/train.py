#!/usr/bin/env python3
"""Trains a Conformer speech recogniser on LibriSpeech.

The loss is CTC together with an attention decoder; a YAML without `seq_lin`
has no decoder and is trained and decoded with CTC alone. With `from_whisper`,
the encoder also learns to give what that of Whisper does. No language model.

To run this recipe:
> python train.py hparams/train.yaml --data_folder=/path/to/LibriSpeech

In a few minutes on a CPU, with synthesised speech:
> python -m sb_prune.demo.corpus /path/to/demo
> python train.py hparams/demo_train.yaml --data_folder=/path/to/demo
"""

import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from librispeech_prepare import prepare_librispeech
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch.nn.functional import avg_pool1d

from sb_prune import pruned


class ASR(sb.Brain):
    """CTC, or joint CTC and attention."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if "from_whisper" in self.modules:
            # not one of `modules`: it neither learns nor is saved
            self.hparams.whisper.to(self.device).eval()

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities, and what else the loss needs.

        That is a distance from Whisper in training, tokens in evaluation.
        """
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.normalize(
            feats, wav_lens, epoch=self.hparams.epoch_counter.current
        )
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "fea_augment"):
            feats, wav_lens = self.hparams.fea_augment(feats, wav_lens)

        has_decoder = "seq_lin" in self.modules
        tokens_bos = batch.tokens_bos.data if has_decoder else None
        enc_out, dec_out = self.modules.Transformer(
            self.modules.CNN(feats),
            tokens_bos,
            wav_lens,
            pad_idx=self.hparams.pad_index,
        )
        p_ctc = self.modules.ctc_lin(enc_out).log_softmax(dim=-1)
        p_seq = None
        if has_decoder:
            p_seq = self.modules.seq_lin(dec_out).log_softmax(dim=-1)
        distance, hyps = 0.0, None
        if stage != sb.Stage.TRAIN:
            hyps = self.decode(enc_out, p_ctc, wav_lens, stage)
        elif "from_whisper" in self.modules:
            distance = self.from_whisper(enc_out, wavs, wav_lens)
        return p_ctc, p_seq, wav_lens, distance, hyps

    def from_whisper(self, enc_out, wavs, wav_lens):
        """How far the frames are from those of Whisper, of which two are one.

        Arguments
        ---------
        enc_out : torch.Tensor
            (batch, frames, d_model), 25 a second.
        wavs : torch.Tensor
            (batch, samples)
        wav_lens : torch.Tensor
            (batch,) relative lengths.

        Returns
        -------
        torch.Tensor
            Scalar, a mean over frames that are not padding.
        """
        with torch.no_grad():
            goal = self.hparams.whisper(wavs)  # 50 a second
        goal = avg_pool1d(goal.mT, 2, ceil_mode=True).mT
        frames = min(goal.shape[1], enc_out.shape[1])
        padded = ~length_to_mask(wav_lens * frames, frames).bool()
        states = [enc_out[:, :frames]], [goal[:, :frames]]
        (distance,) = self.modules.from_whisper(*states, padded).values()
        return self.hparams.whisper_weight * distance

    def decode(self, enc_out, p_ctc, wav_lens, stage):
        """Searches with the decoder where there is one, else greedily."""
        if "seq_lin" not in self.modules:
            return ctc_greedy_decode(p_ctc, wav_lens, self.hparams.blank_index)
        search = (
            self.hparams.valid_search
            if stage == sb.Stage.VALID
            else self.hparams.test_search
        )
        hyps, *_ = search(enc_out.detach(), wav_lens)
        return hyps

    def compute_objectives(self, predictions, batch, stage):
        """The loss, and the word errors in evaluation."""
        p_ctc, p_seq, wav_lens, distance, hyps = predictions
        loss = self.hparams.ctc_cost(
            p_ctc, batch.tokens.data, wav_lens, batch.tokens.lengths
        )
        if p_seq is not None:
            loss_seq = self.hparams.seq_cost(
                p_seq, batch.tokens_eos.data, length=batch.tokens_eos.lengths
            )
            weight = self.hparams.ctc_weight
            loss = weight * loss + (1 - weight) * loss_seq
        if stage != sb.Stage.TRAIN:
            self.wer_metric.append(
                batch.id,
                [self.tokenizer.decode_ids(hyp).split(" ") for hyp in hyps],
                [wrd.split(" ") for wrd in batch.wrd],
            )
        return loss + distance

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate of the coming step."""
        # Beyond total_steps the schedule would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        self.hparams.lr_annealing(self.optimizer, step)

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
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
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
    """
    # One process trains it; the others must not find half of it.
    tokenizer = run_on_main(hparams["tokenizer"]).sp

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos", "tokens")
    def text_pipeline(wrd):
        tokens = tokenizer.encode_as_ids(wrd)
        yield torch.LongTensor([hparams["bos_index"], *tokens])
        yield torch.LongTensor([*tokens, hparams["eos_index"]])
        yield torch.LongTensor(tokens)

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
    set_output_keys(
        datasets, ["id", "sig", "wrd", "tokens_bos", "tokens_eos", "tokens"]
    )
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
        opt_class=hparams["model_opt_class"],
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
