"""Audio for calibration, and transcripts for word error rates."""

import csv
from pathlib import Path

import numpy

from sb_prune.deploy.runtime.audio import read_audio
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.support.audio import SUFFIXES

UTTERANCES = 8  # that are enough to see how far the scores move
SECONDS = 10.0  # of each


def calibration_audio(folder, sample_rate, longest=None, count=UTTERANCES):
    """Reads a few utterances of a folder, evenly spaced in its order.

    Arguments
    ---------
    folder : str
        With audio files in it, or below it.
    sample_rate : int
    longest : int, optional
        Samples that the model hears at most.
    count : int
        Utterances at most.

    Returns
    -------
    list of numpy.ndarray
        (samples,), at most 10 s each.

    Raises
    ------
    DeployError
        If there is no audio, or a file cannot be read.
    """
    most = round(SECONDS * sample_rate)
    most = min(most, longest or most)
    return [
        read_audio(path, sample_rate)[:most]
        for path in some(audio_files(folder), count)
    ]


def audio_files(folder):
    """Finds audio files, in their order.

    Arguments
    ---------
    folder : str
        With audio files in it, or below it.

    Returns
    -------
    list of Path

    Raises
    ------
    DeployError
        If there are none.
    """
    paths = [p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES]
    if not paths:
        raise DeployError(
            f"--audio: {folder} has no audio files ({', '.join(SUFFIXES)})"
        )
    return sorted(paths)


def some(items, count):
    """A few of many, evenly spaced in their order.

    Arguments
    ---------
    items : list
    count : int
        At most.

    Returns
    -------
    list

    Example
    -------
    >>> some([1, 2, 3, 4, 5], 3)
    [1, 3, 5]
    """
    places = numpy.linspace(0, len(items) - 1, min(len(items), count))
    return [items[int(place)] for place in places]


def labelled_audio(manifest, data_folder, sample_rate):
    """Reads the utterances of a manifest of SpeechBrain.

    Arguments
    ---------
    manifest : str
        CSV file with columns `wav` and `wrd`.
    data_folder : str or None
        What stands for `$data_root` and `{data_root}` in the paths.
    sample_rate : int

    Returns
    -------
    list of (numpy.ndarray, str)
        (samples,) and the words.

    Raises
    ------
    DeployError
        If the manifest or a file cannot be read, or there are no transcripts.
    """
    return [
        (read_audio(path, sample_rate), words)
        for path, words in labelled_files(manifest, data_folder)
    ]


def labelled_files(manifest, data_folder):
    """Finds the utterances of a manifest of SpeechBrain.

    Arguments
    ---------
    manifest : str
        CSV file with columns `wav` and `wrd`.
    data_folder : str or None
        What stands for `$data_root` and `{data_root}` in the paths.

    Returns
    -------
    list of (str, str)
        Path and words.

    Raises
    ------
    DeployError
        If the manifest cannot be read, or there are no transcripts.
    """
    try:
        with open(manifest, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DeployError(f"--labels: {manifest}: {error}") from error
    if not rows or not {"wav", "wrd"} <= rows[0].keys():
        raise DeployError(
            f"--labels: {manifest} has no transcripts: write a CSV manifest "
            "with columns `wav` and `wrd`, as the recipes make them"
        )
    found = []
    for row in rows:
        path = row["wav"]
        if not path or row["wrd"] is None:
            raise DeployError(
                f"--labels: {manifest}: {list(row.values())} has no transcript"
            )
        for root in ("$data_root", "{data_root}"):
            if root in path and data_folder is None:
                raise DeployError(
                    f"--labels: paths in {manifest} begin with {root}: write "
                    "--data_folder, too"
                )
            path = path.replace(root, data_folder or "")
        found.append((path, row["wrd"]))
    return found
