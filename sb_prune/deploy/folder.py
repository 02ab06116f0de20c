"""Deploys a model: writes a folder that runs without SpeechBrain.

The folder has ONNX graphs, a tokenizer, and `deploy.json` with settings and
hashes. It is written aside and renamed when it is complete, so that nothing
half is left when the command is stopped.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from sb_prune.deploy.graphs import OPSET
from sb_prune.deploy.integers import Graph
from sb_prune.deploy.manifests import (
    UTTERANCES,
    calibration_audio,
    labelled_audio,
)
from sb_prune.deploy.quantize import (
    MAX_KL,
    Quantizer,
    word_error_rate,
    words_compared,
)
from sb_prune.deploy.recognisers import recogniser
from sb_prune.deploy.runtime.asr import OnnxASR
from sb_prune.deploy.runtime.settings import FILE, DeployError, write_settings
from sb_prune.deploy.sources import cost_of, load_source
from sb_prune.support.disk import naming_what_fails, rename_

ENDS = (".incomplete", ".old")  # of names of folders that are not complete
FURTHEST = {  # in what -> relative difference of scores, and what to do beyond
    "float32": (1e-3, "please report this model"),
    "float16": (1e-2, "leave --half out"),
}
BATCHES = ((1, 1.0), (1, 3.0), (3, 2.5))  # utterances, seconds of the longest


def deploy(source, output, quantization=None, half=False, features_apart=False):
    """Writes a speech recogniser as a folder that runs with onnxruntime.

    Arguments
    ---------
    source : str
        An export of sb_prune, or another folder that SpeechBrain's
        `EncoderASR`, `EncoderDecoderASR` or `WhisperASR` loads. Loading runs
        whatever its `hyperparams.yaml` names.
    output : str
        Folder to write; a model that was deployed there before is replaced.
    quantization : Quantization, optional
        Asks for 8-bit integers, as far as they do little harm.
    half : bool
        Whether to keep weights that stay floats in 16 bits; what is computed
        stays float32.
    features_apart : bool
        Whether `features.onnx` computes the features, and the other graphs
        begin with these.

    Returns
    -------
    list of list of str
        A table of files and of how far the deployed model is from the source.

    Raises
    ------
    DeployError
        If the source cannot be loaded, is of another kind or has a module that
        cannot be traced, or if `output`, or a folder beside it with the same
        name and `.old`, holds other files.
    """
    output = Path(output)
    place = output.resolve()
    aside, old = (place.with_name(place.name + end) for end in ENDS)
    for folder in (place, old):
        _check_output(folder)
    hparams, _ = load_source(source)
    model = recogniser(hparams)
    heard = quantization.read(model) if quantization is not None else None
    with naming_what_fails(output):
        if old.exists() and not place.exists():  # it was stopped in between
            rename_(old, place)
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists():
            rename_(old, aside)
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
    try:
        settings = model.write_(aside, features_apart)
        settings |= {"sample_rate": model.sample_rate, "opset": OPSET}
        settings["source"] = cost_of(hparams, model.sample_rate)
        with naming_what_fails(output):
            write_settings(aside, settings)
        rows = _compare(model, OnnxASR(aside), "float32")
        if quantization is not None:
            rows += _quantize_(aside, settings, quantization, *heard, half)
        elif half:
            for name in OnnxASR(aside).model.graphs:
                Graph(aside / name, half).write((), aside / name)
            _rewrite_settings(aside, settings)
            rows += _compare(model, OnnxASR(aside), "float16")
        table = [["deployed", "value"], *_sizes(aside), *rows]
        with naming_what_fails(output):
            if place.exists():
                rename_(place, old)
            rename_(aside, place)
            if old.exists():
                rename_(old, aside)  # which is removed, whole or half
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return table


def _check_output(output):
    if not output.exists():
        return
    if not (output / FILE).is_file():
        raise DeployError(
            f"--output: {output} is there already, and no deployed model; "
            "name a new folder"
        )


@torch.inference_mode()
def _compare(model, asr, label):
    """Rows that say how far a deployed model is from its source, on noise."""
    generator = torch.Generator().manual_seed(0)
    furthest, differing = 0.0, 0
    for batch, seconds in BATCHES:
        samples = round(seconds * model.sample_rate)
        samples = min(samples, model.longest or samples)
        wavs = 0.1 * torch.randn(batch, samples, generator=generator)
        lens = torch.linspace(1, 0.6, batch)
        arrays = wavs.numpy(), lens.numpy()
        expected = model.scores(wavs, lens).numpy()
        off = abs(asr.model.scores(*arrays) - expected).max()
        furthest = numpy.maximum(furthest, off / abs(expected).max())
        _, found = asr.transcribe_batch(*arrays)
        pairs = zip(found, model.transcribe(wavs, lens))
        differing += sum(ours != list(theirs) for ours, theirs in pairs)
    most, remedy = FURTHEST[label]
    if not furthest <= most:
        raise DeployError(
            f"the graphs are not the model: scores differ by {furthest:.1e} of "
            f"the largest, in {label}; {remedy}"
        )
    count = sum(batch for batch, _ in BATCHES)
    return [
        [f"{label}: largest difference of scores, relative", f"{furthest:.1e}"],
        [
            f"{label}: other tokens than the source, of {count} of noise",
            f"{differing}",
        ],
    ]


def _sizes(folder):
    return [
        [path.name, f"{path.stat().st_size / 2**20:.1f} MiB"]
        for path in sorted(folder.iterdir())
    ]


@dataclass(frozen=True)
class Quantization:
    """Asks for 8-bit integers, as far as they do little harm.

    Arguments
    ---------
    audio : str
        Folder with calibration audio.
    max_kl : float
        KL divergence in nats at most, a mean over frames or tokens, between
        the scores in float32 and those in integers.
    labels : str, optional
        CSV manifest with columns `wav` and `wrd`, whose word errors are
        counted.
    max_wer_loss : float, optional
        Points of the word error rate on these at most, in place of `max_kl`.
    data_folder : str, optional
        What stands for `$data_root` in the manifest.
    static : bool
        Whether activations have the scales of the calibration audio, in place
        of new ones in each call.

    Raises
    ------
    DeployError
        If word errors are to be counted without transcripts.
    """

    audio: str
    max_kl: float = MAX_KL
    labels: str | None = None
    max_wer_loss: float | None = None
    data_folder: str | None = None
    static: bool = False

    def __post_init__(self):
        if self.max_wer_loss is not None and self.labels is None:
            raise DeployError(
                "--max_wer_loss: word errors need transcripts: write --labels "
                "MANIFEST.csv, too, or --max_kl in its place"
            )
        for key in ("max_kl", "max_wer_loss"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise DeployError(f"--{key}: {value}; write 0 or more")

    def read(self, model):
        """Reads the audio, before anything else takes its time.

        Arguments
        ---------
        model : Recogniser

        Returns
        -------
        (list, list)
            What `Quantizer` takes: audio, and what is labelled.
        """
        rate, labelled = model.sample_rate, []
        if self.labels is not None:
            labelled = labelled_audio(self.labels, self.data_folder, rate)
        count = 2 * UTTERANCES if self.static else UTTERANCES
        audio = calibration_audio(self.audio, rate, model.longest, count)
        return audio, labelled


def _rewrite_settings(folder, settings):
    (folder / FILE).unlink()
    write_settings(folder, settings)


def _quantize_(folder, settings, wanted, audio, labelled, half):
    """Writes graphs anew; rows that say what became integers, at what cost."""
    quantizer = Quantizer(
        OnnxASR(folder), folder, audio, labelled, half, wanted.static
    )
    choice = quantizer.choose(wanted.max_kl, wanted.max_wer_loss)
    if not choice.is_allowed:
        raise DeployError(
            f"--quantize: without any integers the cost is {choice.cost:.1e}, "
            f"above the limit{', by --half alone' if half else ''}; write a "
            "larger limit"
        )
    quantizer.write(folder, choice.integers)
    kept = {"floats": choice.floats, "integers": len(choice.integers)}
    _rewrite_settings(folder, {**settings, **kept})
    asr, rows = OnnxASR(folder), []
    if wanted.max_wer_loss is None:
        rows = [["int8: KL divergence, nats", f"{choice.cost:.2g}"]]
    if labelled:
        before = after = quantizer.words_before
        if wanted.max_wer_loss is not None:
            after += choice.cost
        else:
            after = word_error_rate(asr.model, labelled)
        rates = {"float32": before, "int8": after}
        rows += [
            [f"{label}: word error rate, %", f"{rate:.2f}"]
            for label, rate in rates.items()
        ]
        rows += [["normaliser of words", words_compared(asr.model)[1]]]
    products = len(choice.integers) + len(choice.floats)
    return [
        [f"int8: matrix products, of {products}", f"{len(choice.integers)}"],
        *rows,
        *(
            [f"stays a float: {name}", f"{choice.alone[name]:.1e} nats alone"]
            for name in choice.floats
        ),
    ]
