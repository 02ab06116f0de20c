"""CSV manifests of a data set: written once, with checked audio lengths."""

import csv
import json
import re
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.disk import whole_file
from sb_prune.support.messages import shown

logger = get_logger(__name__)

TABLES = "tables"  # key of the names of the csv files, beside the settings


def write_once(save_folder, name, settings, columns, read):
    """Writes csv files, unless they exist already for the same settings.

    The settings are kept in a file `<name>.json`, which is written after the
    csv files. If `read` fails, nothing is written.

    Arguments
    ---------
    save_folder : str
        Folder of the csv files.
    name : str
        Name of the prepare script, e.g. `librispeech_prepare`.
    settings : dict
        Everything that the csv files depend on, as JSON can hold it.
    columns : sequence of str
        Header of every csv file.
    read : callable
        Called without arguments. Returns a dict: name of a csv file, without
        its ending -> list of rows.

    Raises
    ------
    ValueError
        If a value has a $ that SpeechBrain would replace when it reads it.

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
    if marker.is_file() and _is_there(marker, settings):
        logger.info(
            "The csv files in %s are kept; to prepare afresh, delete %s",
            save_folder,
            marker,
        )
        return
    tables = read()
    for rows in tables.values():
        for row in rows:
            _check_dollars(row)
    save_folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for table, rows in tables.items():
        with whole_file(save_folder / f"{table}.csv") as aside:
            with open(aside, "w", newline="", encoding="utf-8") as fout:
                csv.writer(fout).writerows([columns, *rows])
    with whole_file(marker) as aside:
        made = {**settings, TABLES: list(tables)}
        aside.write_text(json.dumps(made), encoding="utf-8")


def _check_dollars(row):
    """Refuses what SpeechBrain would take for a name to replace."""
    for value in map(str, row):
        if re.search(r"\$(?!data_root\b)[\w.]", value):
            raise ValueError(
                f"{row[0]}: SpeechBrain would replace what follows the $ in "
                f"{shown(value)}; write it otherwise, e.g. as a word"
            )


def _is_there(marker, settings):
    """Whether the csv files were made with these settings, and are there."""
    made = json.loads(marker.read_text(encoding="utf-8"))
    tables = made.pop(TABLES, [])  # which versions before 0.3 did not write
    files = [marker.with_name(f"{table}.csv") for table in tables]
    return made == settings and all(file.is_file() for file in files)


def seconds_of(path, remedy):
    """Length of a recording, after checking that its last sample can be read.

    Arguments
    ---------
    path : pathlib.Path
        An audio file.
    remedy : str
        End of the error message: what to do about an unusable file.

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
        raise ValueError(_damaged(path, str(error), remedy)) from error
    if not complete:
        raise ValueError(_damaged(path, "there are no samples to read", remedy))
    if rate != SAMPLE_RATE:
        raise ValueError(
            f"{path} is sampled at {rate} Hz, not {SAMPLE_RATE}: resample the "
            f"audio, e.g. ffmpeg -i IN.flac -ar {SAMPLE_RATE} OUT.flac"
        )
    return seconds


def _damaged(path, reason, remedy):
    return f"{path} is empty or corrupt ({reason}): {remedy}"
