"""What all synthesised corpora share: voices, noise, safe interruption.

A corpus module (`corpus.py`, `slurp.py`, `speech_commands.py`) decides what is
said and where the files go. This one turns text into audio files, and marks a
folder as complete only when all of it is written.
"""

import argparse
import inspect
import json
import os
import shutil
from pathlib import Path

import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from sb_prune.demo.espeak import Speaker, speak_all
from sb_prune.support.audio import SAMPLE_RATE

MARKER = "synthesis.json"

SPEAKERS = {
    19: Speaker("en-us", 165, 45),
    26: Speaker("en-us+f3", 160, 55),
    32: Speaker("en-gb-x-rp+m7", 155, 40),
    39: Speaker("en-us+f5", 175, 50),
    40: Speaker("en-gb-scotland+m3", 170, 50),
    60: Speaker("en-us+m1", 180, 60),
    78: Speaker("en-029+f2", 165, 60),
    83: Speaker("en-us-nyc+Annie", 170, 45),
}


def write_once(folder, settings, write):
    """Fills a new folder, or finds that it was filled in the same way.

    An interrupted call leaves no folder of that name.

    Arguments
    ---------
    folder : str
        The data folder to create.
    settings : dict
        Everything that the content of the files depends on.
    write : callable
        Function that fills a folder, given as a pathlib.Path.

    Raises
    ------
    ValueError
        If the folder holds something else.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "corpus"
    >>> write_once(folder, {"seed": 1}, lambda path: path.mkdir())
    >>> [path.name for path in folder.iterdir()]
    ['synthesis.json']
    """
    folder = Path(folder).resolve()
    if _is_complete(folder, settings):
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    (partial / MARKER).write_text(json.dumps(settings))
    os.replace(partial, folder)


def _is_complete(folder, settings):
    """Whether the folder is this corpus; raises if it is anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / MARKER).is_file():
        raise ValueError(
            f"{folder} holds files that were not synthesised here: "
            "name a new folder."
        )
    found = json.loads((folder / MARKER).read_text())
    if found != settings:
        raise ValueError(
            f"{folder} was synthesised with {found}, not with {settings}: "
            "delete it or name a new folder."
        )
    return True


def write_audio(paths, texts, speakers, rng, snr=20):
    """Speaks texts into audio files of 16 kHz, with a little noise.

    Arguments
    ---------
    paths : list of pathlib.Path
        The files to write.
    texts : list of str
        The text of each file.
    speakers : list of Speaker
        The speaker of each file.
    rng : numpy.random.Generator
        Generator that makes the noise.
    snr : float
        Signal-to-noise ratio of the loudest noise, in dB.
    """
    spoken = speak_all(texts, speakers)
    progress = tqdm(paths, desc="Synthesising", unit="utt")
    for path, (samples, rate) in zip(progress, spoken, strict=True):
        samples = resample(torch.from_numpy(samples), rate, SAMPLE_RATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy = add_noise(samples.numpy(), rng, snr)
        soundfile.write(path, noisy, SAMPLE_RATE)


def add_noise(samples, rng, snr=20):
    """Adds white noise, by default 20 to 35 dB below the speech.

    Arguments
    ---------
    samples : numpy.ndarray
        Speech of shape (time,).
    rng : numpy.random.Generator
        Generator that makes the noise.
    snr : float
        Signal-to-noise ratio of the loudest noise, in dB; the quietest is
        15 dB below it.

    Returns
    -------
    numpy.ndarray
        Noisy speech of shape (time,), scaled to a largest magnitude of 0.5.

    Example
    -------
    >>> import numpy as np
    >>> float(add_noise(np.ones(4), np.random.default_rng(0)).max())
    0.5
    """
    level = samples.std() * 10 ** (-rng.uniform(snr, snr + 15) / 20)
    noisy = samples + level * rng.standard_normal(len(samples))
    return 0.5 * noisy / abs(noisy).max()


def run_from_command_line(synthesise, description):
    """Calls a function with a folder and integers from the command line.

    Arguments
    ---------
    synthesise : callable
        Function whose arguments, except `folder`, become options.
    description : str
        What `--help` says first.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder")
    for name, parameter in inspect.signature(synthesise).parameters.items():
        if name != "folder":
            parser.add_argument(
                f"--{name}", type=int, default=parameter.default
            )
    synthesise(**vars(parser.parse_args()))
