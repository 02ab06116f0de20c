#!/usr/bin/env python3
"""Fine-tunes Whisper, encoder and decoder, on LibriSpeech.

Words are scored after Whisper's own normaliser of English text, which spells
numbers as digits and drops punctuation, as in the paper (2212.04356).

To run this recipe:
> python train_with_whisper.py hparams/train_whisper.yaml --data_folder=/path/to/LibriSpeech

To score the model as it was published:
> python train_with_whisper.py hparams/train_whisper.yaml --data_folder=/path/to/LibriSpeech --number_of_epochs=0

To distil it into a student with two layers in the decoder:
> python train_with_whisper.py hparams/distil_whisper.yaml --data_folder=/path/to/LibriSpeech
"""  # noqa: E501

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
from speechbrain.utils.distributed import if_main_process, run_on_main
from whisper_normalizer.english import EnglishTextNormalizer

from sb_prune import pruned
from sb_prune.recipe.pseudo_labels import (
    read_pseudo_labels,
    write_pseudo_labels,
)
from sb_prune.recipe.windows import unpadded


class ASR(sb.Brain):
    """Cross-entropy of the tokens of a transcript."""

    normalize = EnglishTextNormalizer()

    def compute_forward(self, batch, stage):
        """From waveforms to log-probabilities and, in evaluation, tokens.

        None where training learns from the teacher alone.
        """
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        tokens, lengths = batch.tokens_bos
        real = length_to_mask((lengths * tokens.shape[1]).round()).bool()
        tokens = tokens.masked_fill(~real, self.tokenizer.pad_token_id)
        has_words = stage != sb.Stage.TRAIN or self.learns_from("whisper", 1)
        window = None
        if stage == sb.Stage.TRAIN and self.learns_without_words():
            window = self.full_window(wavs, wav_lens, tokens, lengths)
        if window is not None:
            wavs, tokens = window
        encoded, logits, _ = self.modules.whisper(
            wavs, tokens if has_words else None
        )
        if window is not None or not has_words:
            return None
        hyps = None
        if stage != sb.Stage.TRAIN:
            hyps, *_ = self.hparams.search(encoded.detach(), wav_lens)
        return logits.log_softmax(dim=-1), hyps

    def learns_without_words(self):
        """Whether the teacher alone reaches all that trains in this step."""
        decoder_trains = "decoder" in self.optimizers_dict
        return self.compares("whisper", 1) or (
            self.compares("whisper", 0) and not decoder_trains
        )

    def full_window(self, wavs, wav_lens, tokens, lengths):
        """Utterances that fill the window, and their words; None for most."""
        if not hasattr(self.hparams, "windows"):
            return None
        first = len(self.tokenizer.prefix_tokens)
        texts = [text[first:] for text in unpadded(tokens, lengths)]
        window = self.hparams.windows(unpadded(wavs, wav_lens), texts)
        if window is None:
            return None
        wavs, said = window
        most = self.hparams.whisper.model.config.max_target_positions
        return wavs, torch.cat([tokens[:1, :first], said], 1)[:, :most]

    def compute_objectives(self, predictions, batch, stage):
        """The loss, and the word errors in evaluation."""
        if predictions is None:
            return None
        p_seq, hyps = predictions
        if stage != sb.Stage.TRAIN:
            heard = self.tokenizer.batch_decode(hyps, skip_special_tokens=True)
            self.wer_metric.append(
                batch.id, self.words(heard), self.words(batch.wrd)
            )
        tokens, lengths = batch.tokens_eos
        return self.hparams.seq_cost(p_seq, tokens, length=lengths)

    @torch.no_grad()
    def transcribe(self, batch):
        """What the model writes for a batch, in its own style."""
        self.modules.eval()
        wavs, wav_lens = batch.to(self.device).sig
        begin = torch.tensor([self.tokenizer.prefix_tokens] * len(wavs))
        with self.evaluation_ctx:
            encoded, *_ = self.modules.whisper(wavs, begin.to(self.device))
            hyps, *_ = self.hparams.search(encoded, wav_lens)
        return self.tokenizer.batch_decode(hyps, skip_special_tokens=True)

    def learning_rates(self):
        """Those of the last step, for the log."""
        return {
            f"lr_{name}": optimizer.param_groups[0]["lr"]
            for name, optimizer in self.optimizers_dict.items()
        }

    def words(self, texts):
        """Lists of normalised words."""
        return [self.normalize(text).split() for text in texts]

    def init_optimizers(self):
        """One optimizer for the encoder, one for the decoder, unless frozen."""
        model = self.hparams.whisper.model
        parts = {
            "encoder": (model.encoder, self.hparams.encoder_opt_class),
            "decoder": (model.decoder, self.hparams.decoder_opt_class),
        }
        self.optimizers_dict = {}
        for name, (part, opt_class) in parts.items():
            learned = [p for p in part.parameters() if p.requires_grad]
            if learned:
                self.optimizers_dict[name] = opt_class(learned)
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(
                    f"{name}_optimizer", optimizer
                )

    def on_fit_start(self):
        """Refuses a decoder that trains, and has nothing to learn from."""
        super().on_fit_start()
        trains = "decoder" in self.optimizers_dict
        if trains and not self.learns_from("whisper", 1, when_held=False):
            raise ValueError(
                "freeze_decoder: False, but no loss reads what the decoder "
                "writes; write freeze_decoder: True, or, under distillation, "
                "task_weight: 1.0 or outputs: {whisper: 1}"
            )

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rates of the coming step."""
        # Beyond total_steps the schedules would turn negative.
        step = min(self.optimizer_step + 1, self.hparams.total_steps)
        for name, optimizer in self.optimizers_dict.items():
            anneal = getattr(self.hparams, f"lr_annealing_{name}")
            anneal(optimizer, step)

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
                {"epoch": epoch, **self.learning_rates()},
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
                fout.write("Words of Whisper's normaliser of English\n")
                self.wer_metric.write_stats(fout)


def dataio_prepare(hparams, tokenizer, transcribe):
    """Datasets, and the sampler of training batches.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.
    tokenizer : transformers.WhisperTokenizer
        That of the model.
    transcribe : callable
        Batch -> list of str, for `pseudo_labels`.

    Returns
    -------
    train_data, valid_data : DynamicItemDataset
        For `fit`.
    test_data : dict of str to DynamicItemDataset
        For `evaluate`, by split.
    train_sampler : DynamicBatchSampler
        Batches of utterances of about the same length.
    """
    before, after = tokenizer.prefix_tokens, [tokenizer.eos_token_id]

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    labels = {}  # of training data; others have their transcripts

    @sb.utils.data_pipeline.takes("id", "wrd")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos")
    def text_pipeline(name, wrd):
        text = labels[name] if name in labels else ASR.normalize(wrd)
        text = tokenizer.encode(f" {text}", add_special_tokens=False)
        tokens = torch.LongTensor([*before, *text, *after])
        yield tokens[:-1]
        yield tokens[1:]

    def load(csv_file):
        return DynamicItemDataset.from_csv(
            csv_file, replacements={"data_root": hparams["data_folder"]}
        ).filtered_sorted(sort_key="duration")

    train_data = load(hparams["train_csv"])
    valid_data = load(hparams["valid_csv"])
    test_data = {Path(name).stem: load(name) for name in hparams["test_csv"]}

    datasets = [train_data, valid_data, *test_data.values()]
    add_dynamic_item(datasets, audio_pipeline)
    if hparams["pseudo_labels"]:
        labels.update(pseudo_labels(hparams, train_data, transcribe))
        train_data = train_data.filtered_sorted(
            key_test={"id": labels.__contains__}, sort_key="duration"
        )
        datasets[0] = train_data
    elif not all(row["wrd"] for row in train_data.data.values()):
        raise ValueError(
            f"train_csv: {hparams['train_csv']} has utterances without words; "
            "write pseudo_labels: True, to learn from what the model hears"
        )
    add_dynamic_item(datasets, text_pipeline)
    set_output_keys(datasets, ["id", "sig", "wrd", "tokens_bos", "tokens_eos"])
    train_sampler = DynamicBatchSampler(
        train_data, **hparams["dynamic_batch_sampler_train"]
    )
    return train_data, valid_data, test_data, train_sampler


def pseudo_labels(hparams, train_data, transcribe):
    """Targets of training that the model writes, before it has learned.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.
    train_data : DynamicItemDataset
    transcribe : callable
        Batch -> list of str.

    Returns
    -------
    dict
        ID -> text, without those that are far from the transcript.
    """
    path = Path(hparams["output_folder"], "pseudo_labels.csv")
    model = ("whisper_hub", "language", "context", "margin")
    batches = hparams["dynamic_batch_sampler_train"]
    write_pseudo_labels(
        path,
        train_data,
        transcribe,
        ASR.normalize,
        settings={
            **{key: hparams[key] for key in model},
            "min_context": hparams["whisper"].min_context,
        },
        max_batch_length=batches["max_batch_length"],
        max_batch_ex=batches["max_batch_ex"],
        **hparams["train_dataloader_opts"],
    )
    return read_pseudo_labels(path, train_data, hparams["max_wer"])


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
            "any_audio": hparams["pseudo_labels"],
        },
    )
    asr_brain = pruned(ASR)(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = hparams["whisper"].tokenizer
    train_data, valid_data, test_data, train_sampler = dataio_prepare(
        hparams, asr_brain.tokenizer, asr_brain.transcribe
    )
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
