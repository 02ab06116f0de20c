"""Speech Commands v0.02 (Warden, 2018) to csv files.

http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz
"""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000  # Hz
COLUMNS = ("ID", "duration", "wav", "spk_id", "word")
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"
MARKER = "speech_commands_prepare.json"


def prepare_speech_commands(data_folder, save_folder, skip_prep=False):
    """Writes `train.csv`, `valid.csv` and `test.csv`, one word a row.

    A speaker is the hash before `_nohash_` in the name of a file. The splits
    are those of `validation_list.txt` and `testing_list.txt`, in which a
    speaker is in one split only; what neither lists is for training. The csv
    files name the audio relative to `$data_root`. When they were already
    written for the same folder, nothing is done; when anything is wrong with
    the data, nothing is written.

    Arguments
    ---------
    data_folder : str
        Holds a folder for each word, and the two lists.
    save_folder : str
        Where the csv files go.
    skip_prep : bool
        Whether to trust the csv files that are there.

    Raises
    ------
    FileNotFoundError
        If a list, a listed file or all audio is missing.
    ValueError
        If an audio file is empty, corrupt or not sampled at 16 kHz, or a
        split has none.

    Example
    -------
    >>> prepare_speech_commands("/data/commands", "results", skip_prep=True)
    """
    if skip_prep:
        return
    save_folder = Path(save_folder)
    settings = {"data_folder": str(data_folder)}
    marker = save_folder / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        logger.info("Speech Commands is already prepared in %s", save_folder)
        return
    tables = read_splits(Path(data_folder))
    save_folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for name, rows in tables.items():
        with open(save_folder / f"{name}.csv", "w", newline="") as fout:
            writer = csv.writer(fout)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    partial = marker.with_name(MARKER + ".partial")
    partial.write_text(json.dumps(settings))
    os.replace(partial, marker)


def read_splits(data_folder):
    """Describes the recordings of all splits.

    Arguments
    ---------
    data_folder : pathlib.Path
        Holds a folder for each word, and the two lists.

    Returns
    -------
    dict
        "train", "valid", "test" -> rows with the values of `COLUMNS`.

    Raises
    ------
    FileNotFoundError
        If a list, a listed file or all audio is missing.
    ValueError
        If an audio file, or a split, is of no use.
    """
    files = sorted(
        path.relative_to(data_folder).as_posix()
        for path in data_folder.glob("*/*.wav")
        if path.parent.name != NOISE
    )
    if not files:
        raise FileNotFoundError(
            f"No words in {data_folder}: set data_folder to the folder that "
            "speech_commands_v0.02.tar.gz was unpacked in"
        )
    splits = {name: _read_list(data_folder / f) for name, f in LISTS.items()}
    for name, listed in splits.items():
        missing = listed - set(files)
        if missing:
            raise FileNotFoundError(
                f"{data_folder / LISTS[name]} names {len(missing)} files that "
                f"are not on disk, e.g. {min(missing)}: unpack the archive "
                "again"
            )
    of_file = {f: name for name, listed in splits.items() for f in listed}
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda f: read_row(data_folder, f), files))
    tables = {"train": [], **{name: [] for name in LISTS}}
    for file, row in zip(files, rows):
        tables[of_file.get(file, "train")].append(row)
    for name, table in tables.items():
        if not table:
            raise ValueError(f"{data_folder}: no file is in the split {name}")
    return tables


def _read_list(path):
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: set data_folder to the folder that "
            "speech_commands_v0.02.tar.gz was unpacked in"
        )
    return set(path.read_text(encoding="utf-8").split())


def read_row(data_folder, file):
    """Describes one recording.

    Arguments
    ---------
    data_folder : pathlib.Path
        From which the path is written.
    file : str
        `<word>/<speaker>_nohash_<number>.wav`

    Returns
    -------
    tuple
        The values of `COLUMNS`.
    """
    word, _, name = file.partition("/")
    path = data_folder / file
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError as err:
        raise ValueError(f"{path} cannot be read as audio: {err}") from err
    if info.samplerate != SAMPLE_RATE or not info.frames:
        raise ValueError(
            f"{path} has {info.frames} samples at {info.samplerate} Hz; "
            "unpack the archive again"
        )
    speaker = name.partition("_")[0]
    key = f"{word}_{name.removesuffix('.wav')}"
    return key, info.duration, f"$data_root/{file}", speaker, word
