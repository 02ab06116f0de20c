"""LibriSpeech (http://www.openslr.org/12) to csv files."""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000  # Hz, of LibriSpeech and of all that is trained on it
COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
MARKER = "librispeech_prepare.json"


def prepare_librispeech(
    data_folder,
    save_folder,
    tr_splits=(),
    dev_splits=(),
    te_splits=(),
    skip_prep=False,
):
    """Writes `<split>.csv` for each split, and `train.csv` for all training.

    The csv files name the audio relative to `$data_root`. When they were
    already written for the same folder and splits, nothing is done; when
    anything is wrong with the data, nothing is written.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits (train-clean-100, ...).
    save_folder : str
        Where the csv files go.
    tr_splits, dev_splits, te_splits : list of str
        Names of the splits of each kind.
    skip_prep : bool
        Whether to trust the csv files that are there.

    Raises
    ------
    FileNotFoundError
        If a split, a transcript or an audio file is missing.
    ValueError
        If an audio file is empty, corrupt or not sampled at 16 kHz.

    Example
    -------
    >>> prepare_librispeech("/data/LibriSpeech", "results", skip_prep=True)
    """
    if skip_prep:
        return
    save_folder = Path(save_folder)
    splits = [*tr_splits, *dev_splits, *te_splits]
    settings = {"data_folder": str(data_folder), "splits": splits}
    settings["train"] = list(tr_splits)
    marker = save_folder / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        logger.info("LibriSpeech is already prepared in %s", save_folder)
        return
    rows = {split: read_split(data_folder, split) for split in splits}
    rows["train"] = [row for split in tr_splits for row in rows[split]]
    save_folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for name, table in rows.items():
        write_csv(save_folder / f"{name}.csv", table)
    partial = marker.with_name(MARKER + ".partial")
    partial.write_text(json.dumps(settings))
    os.replace(partial, marker)


def read_split(data_folder, split):
    """Reads transcripts and durations of one split.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits.
    split : str
        The name of one.

    Returns
    -------
    list of tuple
        One row per utterance, with the values of `COLUMNS`.

    Raises
    ------
    FileNotFoundError
        If the split, its transcripts or an audio file is missing.
    """
    transcripts = sorted(Path(data_folder, split).glob("*/*/*.trans.txt"))
    if not transcripts:
        raise FileNotFoundError(
            f"No transcripts in {Path(data_folder, split)}: set data_folder "
            f"to the folder that holds {split}, or download that split from "
            "http://www.openslr.org/12"
        )
    utterances = [
        (path.parent, *line.split(maxsplit=1))
        for path in transcripts
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda u: read_row(data_folder, *u), utterances))


def read_row(data_folder, folder, utterance, words):
    """Describes one utterance.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits.
    folder : pathlib.Path
        The folder of the audio file.
    utterance : str
        Its name, `<speaker>-<chapter>-<number>`.
    words : str
        What is said.

    Returns
    -------
    tuple
        The values of `COLUMNS`.
    """
    path = folder / f"{utterance}.flac"
    wav = f"$data_root/{path.relative_to(data_folder)}"
    return utterance, duration(path), wav, utterance.split("-")[0], words


def duration(path):
    """Length of an audio file whose last sample can be read.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is empty, truncated, no audio, or not sampled at 16 kHz.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is in the transcripts but not on disk: unpack the "
            "archive of its split again."
        )
    try:
        with soundfile.SoundFile(path) as audio:
            # The header alone does not show that a download was cut short.
            audio.seek(max(audio.frames - 1, 0))
            complete = len(audio.read(1)) == 1
            rate, seconds = audio.samplerate, audio.frames / audio.samplerate
    except soundfile.SoundFileError as err:
        raise ValueError(_bad_audio(path, str(err))) from err
    if not complete:
        raise ValueError(_bad_audio(path, "there are no samples to read"))
    if rate != SAMPLE_RATE:
        raise ValueError(
            f"{path} is sampled at {rate} Hz, not {SAMPLE_RATE}: resample the "
            f"audio, e.g. ffmpeg -i IN.flac -ar {SAMPLE_RATE} OUT.flac"
        )
    return seconds


def _bad_audio(path, reason):
    return (
        f"{path} is empty or corrupt ({reason}): unpack the archive of its "
        "split again, or remove the file and its line in the transcripts."
    )


def write_csv(path, rows):
    """Writes a csv file that is either complete or absent.

    Arguments
    ---------
    path : pathlib.Path
        The file to write.
    rows : list of tuple
        The values of `COLUMNS`.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as fout:
        csv.writer(fout).writerows([COLUMNS, *rows])
    os.replace(partial, path)
