"""Speech Commands v0.02 (Warden, 2018) to csv files.

http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz
"""

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain.utils.logger import get_logger

from sb_prune.recipe.manifests import seconds_of, write_once

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "word")
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"


def prepare_speech_commands(
    data_folder, save_folder, label="word", skip_prep=False
):
    """Writes `train.csv`, `valid.csv` and `test.csv`, one word a row.

    A speaker is the hash before `_nohash_` in the name of a file. The splits
    are those of `validation_list.txt` and `testing_list.txt`, in which a
    speaker is in one split only; what neither lists is for training. To tell
    speakers apart, all recordings are split anew: a tenth of each speaker's,
    at least one, is for validation, and again for testing; speakers with fewer
    than three are left out. The csv files name the audio relative to
    `$data_root`. When they were already written for the same folder and label,
    nothing is done; when anything is wrong with the data, nothing is written.

    Arguments
    ---------
    data_folder : str
        Holds a folder for each word, and the two lists.
    save_folder : str
        Where the csv files go.
    label : str
        What will be told apart: word or spk_id.
    skip_prep : bool
        Whether to trust the csv files that are there.

    Raises
    ------
    FileNotFoundError
        If a list, a listed file or all audio is missing.
    ValueError
        If an audio file is empty, corrupt or not sampled at 16 kHz, a split
        has none, or the label is another.

    Example
    -------
    >>> prepare_speech_commands("/data/commands", "results", skip_prep=True)
    """
    if label not in ("word", "spk_id"):
        raise ValueError(f"label: {label!r}; write word or spk_id")
    if skip_prep:
        return

    def read():
        tables = read_splits(Path(data_folder))
        return split_speakers(tables) if label == "spk_id" else tables

    settings = {"data_folder": str(data_folder), "label": label}
    write_once(save_folder, "speech_commands_prepare", settings, COLUMNS, read)


def split_speakers(tables, share=0.1):
    """The same rows, some of every speaker's in each split.

    Arguments
    ---------
    tables : dict
        Split -> rows with the values of `COLUMNS`.
    share : float
        Of each speaker's rows, for validation and again for testing.

    Returns
    -------
    dict
        Split -> rows.

    Raises
    ------
    ValueError
        If no speaker has three.
    """
    spoken = defaultdict(list)
    for rows in tables.values():
        for row in rows:
            spoken[row[COLUMNS.index("spk_id")]].append(row)
    few = [speaker for speaker, rows in spoken.items() if len(rows) < 3]
    if few:
        logger.warning(
            "%d of %d speakers are left out: they said fewer than three words",
            len(few),
            len(spoken),
        )
    if len(few) == len(spoken):
        raise ValueError("no speaker said three words or more")
    found = {name: [] for name in tables}
    for speaker in sorted(spoken.keys() - few):
        # words and repetitions mixed, the same in each run
        rows = sorted(spoken[speaker], key=lambda row: row[0])
        random.Random(speaker).shuffle(rows)
        apart = max(round(share * len(rows)), 1)
        parts = rows[2 * apart :], rows[:apart], rows[apart : 2 * apart]
        for name, part in zip(("train", "valid", "test"), parts):
            found[name] += part
    return found


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
    seconds = seconds_of(data_folder / file, "unpack the archive again.")
    speaker = name.partition("_")[0]
    key = f"{word}_{name.removesuffix('.wav')}"
    return key, seconds, f"$data_root/{file}", speaker, word
