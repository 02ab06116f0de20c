"""What the recipes' prepare files have in common: csv files, written once."""

import csv
import json
import os
from contextlib import contextmanager
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000  # Hz, of all corpora here and all that is trained on them


def write_once(save_folder, name, settings, columns, read):
    """Writes csv files, unless they stand there for the same settings.

    A file `<name>.json` is written last and says so. When reading fails,
    nothing is written.

    Arguments
    ---------
    save_folder : str
        Where the csv files go.
    name : str
        Of what prepares, e.g. `librispeech_prepare`.
    settings : dict
        All that the csv files depend on, of JSON's types.
    columns : sequence of str
        The head of every csv file.
    read : callable
        Takes nothing, gives a dict: csv file without ending -> list of rows.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> read = lambda: {"train": [("utt1", 2.5)]}
    >>> write_once(folder, "prepare", {"of": "a"}, ("ID", "duration"), read)
    >>> Path(folder, "train.csv").read_text().split()
    ['ID,duration', 'utt1,2.5']
    >>> write_once(folder, "prepare", {"of": "a"}, ("ID",), None)  # not read
    """
    save_folder = Path(save_folder)
    marker = save_folder / f"{name}.json"
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        logger.info(
            "The csv files in %s are kept; to prepare afresh, delete %s",
            save_folder,
            marker,
        )
        return
    tables = read()
    save_folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for table, rows in tables.items():
        with _whole(save_folder / f"{table}.csv") as partial:
            with open(partial, "w", newline="", encoding="utf-8") as fout:
                csv.writer(fout).writerows([columns, *rows])
    with _whole(marker) as partial:
        partial.write_text(json.dumps(settings))


@contextmanager
def _whole(path):
    """A file to write that takes its place when it is complete."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)


def seconds_of(path, remedy):
    """Length of a recording whose last sample can be read.

    Arguments
    ---------
    path : pathlib.Path
        An audio file.
    remedy : str
        What to do when it is of no use; ends the message.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ValueError
        If the file is empty, truncated, no audio, or not sampled at 16 kHz.
    """
    try:
        with soundfile.SoundFile(path) as audio:
            # The header alone does not show that a download was cut short.
            audio.seek(max(audio.frames - 1, 0))
            complete = len(audio.read(1)) == 1
            rate, seconds = audio.samplerate, audio.frames / audio.samplerate
    except soundfile.SoundFileError as error:
        raise ValueError(_useless(path, str(error), remedy)) from error
    if not complete:
        raise ValueError(_useless(path, "there are no samples to read", remedy))
    if rate != SAMPLE_RATE:
        raise ValueError(
            f"{path} is sampled at {rate} Hz, not {SAMPLE_RATE}: resample the "
            f"audio, e.g. ffmpeg -i IN.flac -ar {SAMPLE_RATE} OUT.flac"
        )
    return seconds


def _useless(path, reason, remedy):
    return f"{path} is empty or corrupt ({reason}): {remedy}"
