#!/usr/bin/env python3
"""Fine-tunes a self-supervised encoder for spoken language understanding.

From speech to the semantics of SLURP in one model: the encoder (wav2vec 2.0,
HuBERT or WavLM) is followed by a recurrent decoder with attention, which
writes scenario, action and entities. No transcript, no language model.

To run this recipe:
> python train_with_wav2vec2.py hparams/finetune.yaml --data_folder=/path/to/slurp

In minutes on a CPU, with synthesised speech and a small encoder:
> python -m sb_prune.demo.slurp /path/to/slurp_demo
> python train_with_wav2vec2.py hparams/demo_finetune.yaml --data_folder=/path/to/slurp_demo --wav2vec2_hub=/path/to/small_wav2vec2
"""  # noqa: E501

import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from slurp_prepare import prepare_slurp
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import if_main_process, run_on_main

from sb_prune import pruned


class SLU(sb.Brain):
    """Encoder and attention decoder, each with an optimizer of its own."""

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities and, in evaluation, tokens."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        enc_out = self.modules.wav2vec2(wavs, wav_lens)
        embedded = self.modules.output_emb(batch.tokens_bos.data)
        dec_out, _ = self.modules.dec(embedded, enc_out, wav_lens)
        p_seq = self.modules.seq_lin(dec_out).log_softmax(dim=-1)
        hyps = None
        if stage != sb.Stage.TRAIN:
            search = (
                self.hparams.valid_search
                if stage == sb.Stage.VALID
                else self.hparams.test_search
            )
            hyps, *_ = search(enc_out.detach(), wav_lens)
        return p_seq, hyps

    def compute_objectives(self, predictions, batch, stage):
        """The loss; in evaluation what was understood is collected too."""
        p_seq, hyps = predictions
        if stage != sb.Stage.TRAIN:
            self.slu_stats.append(
                batch.id,
                [self.tokenizer.decode_ids(hyp) for hyp in hyps],
                batch.semantics,
            )
        return self.hparams.seq_cost(
            p_seq, batch.tokens_eos.data, length=batch.tokens_eos.lengths
        )

    def init_optimizers(self):
        """One optimizer for the encoder, unless frozen, one for the rest."""
        self.model_optimizer = self.hparams.model_opt_class(
            self.hparams.model.parameters()
        )
        self.optimizers_dict = {"model_optimizer": self.model_optimizer}
        if not self.hparams.freeze_wav2vec2:
            self.wav2vec2_optimizer = self.hparams.wav2vec2_opt_class(
                self.modules.wav2vec2.parameters()
            )
            self.optimizers_dict["wav2vec2_optimizer"] = self.wav2vec2_optimizer
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(name, optimizer)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rates of the coming step."""
        # Beyond total_steps the schedules would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        self.hparams.lr_annealing(self.model_optimizer, step)
        if not self.hparams.freeze_wav2vec2:
            self.hparams.lr_annealing_wav2vec2(self.wav2vec2_optimizer, step)

    def on_stage_start(self, stage, epoch=None):
        """Starts collecting what is understood."""
        if stage != sb.Stage.TRAIN:
            self.slu_stats = self.hparams.slu_stats_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, and keeps the checkpoint that gets most intents right."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats.update(self.slu_stats.summarize())
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
                meta={
                    "intent_accuracy": stats["intent_accuracy"],
                    "epoch": epoch,
                },
                max_keys=["intent_accuracy"],
            )
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        if if_main_process():
            self.slu_stats.write_predictions(self.hparams.predictions_file)


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
    train_data, valid_data, test_data : DynamicItemDataset
        For `fit` and `evaluate`.
    train_sampler : DynamicBatchSampler
        Batches of utterances of about the same length.
    tokenizer : sentencepiece.SentencePieceProcessor
        Between semantics and tokens.
    """
    # One process trains it; the others must not find half of it.
    tokenizer = run_on_main(hparams["tokenizer"]).sp

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("semantics")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(semantics):
        tokens = tokenizer.encode_as_ids(semantics)
        yield torch.LongTensor([hparams["bos_index"], *tokens])
        yield torch.LongTensor([*tokens, hparams["eos_index"]])

    datasets = [
        DynamicItemDataset.from_csv(
            hparams[csv_file],
            replacements={"data_root": hparams["audio_folder"]},
        ).filtered_sorted(sort_key="duration")
        for csv_file in ("train_csv", "valid_csv", "test_csv")
    ]
    add_dynamic_item(datasets, audio_pipeline)
    add_dynamic_item(datasets, text_pipeline)
    set_output_keys(
        datasets, ["id", "sig", "semantics", "tokens_bos", "tokens_eos"]
    )
    train_sampler = DynamicBatchSampler(
        datasets[0], **hparams["dynamic_batch_sampler_train"]
    )
    return *datasets, train_sampler, tokenizer


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
        prepare_slurp,
        kwargs={
            "text_folder": hparams["text_folder"],
            "audio_folder": hparams["audio_folder"],
            "save_folder": hparams["output_folder"],
            "train_splits": hparams["train_splits"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    train_data, valid_data, test_data, train_sampler, tokenizer = (
        dataio_prepare(hparams)
    )

    slu_brain = pruned(SLU)(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    slu_brain.tokenizer = tokenizer
    # Without this, one process repeats the same batches in each epoch.
    slu_brain.train_sampler = train_sampler

    slu_brain.fit(
        slu_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs={
            "batch_sampler": train_sampler,
            **hparams["train_dataloader_opts"],
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    slu_brain.evaluate(
        test_data,
        max_key="intent_accuracy",
        test_loader_kwargs=hparams["test_dataloader_opts"],
    )
