"""LibriSpeech (http://www.openslr.org/12) to csv files."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sb_prune.recipe.audio_folders import read_folder
from sb_prune.recipe.manifests import seconds_of, write_once

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
REMEDY = (
    "unpack the archive of its split again, or remove the file and its line "
    "in the transcripts."
)


def prepare_librispeech(
    data_folder,
    save_folder,
    tr_splits=(),
    dev_splits=(),
    te_splits=(),
    skip_prep=False,
    any_audio=False,
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
    any_audio : bool
        Whether splits for training may be any folders of audio; where there is
        no transcript, no words are written.

    Raises
    ------
    FileNotFoundError
        If a split, a transcript or an audio file is missing.
    ValueError
        If an audio file is empty, corrupt or not sampled at 16 kHz, or a
        transcript has no words.

    Example
    -------
    >>> prepare_librispeech("/data/LibriSpeech", "results", skip_prep=True)
    """
    if skip_prep:
        return
    splits, first = [*tr_splits, *dev_splits, *te_splits], len(tr_splits)
    settings = {
        "data_folder": str(data_folder),
        "splits": splits,
        "train": list(tr_splits),
    }
    if any_audio:
        settings["any_audio"] = True

    def read():
        if any_audio:  # a folder's name is none for a file
            rows = {s: read_split(data_folder, s) for s in splits[first:]}
            training = [read_any_split(data_folder, s) for s in tr_splits]
            return {**rows, "train": [row for part in training for row in part]}
        rows = {split: read_split(data_folder, split) for split in splits}
        rows["train"] = [row for split in tr_splits for row in rows[split]]
        return rows

    write_once(save_folder, "librispeech_prepare", settings, COLUMNS, read)


def prepare_speakers(
    data_folder, save_folder, splits, share=0.1, skip_prep=False
):
    """Writes `train.csv`, `valid.csv` and `test.csv`, to tell speakers apart.

    LibriSpeech's own splits share no speakers, so that some utterances of each
    speaker are set apart; they may be of a chapter that is trained on. When
    the csv files were already written for the same folder, splits and share,
    nothing is done.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits (train-clean-100, ...).
    save_folder : str
        Where the csv files go.
    splits : list of str
        The utterances to take.
    share : float
        Fraction of each speaker's utterances for validation, and again for
        testing; at least one utterance.
    skip_prep : bool
        Whether to trust the csv files that are there.

    Raises
    ------
    FileNotFoundError
        If a split, a transcript or an audio file is missing.
    ValueError
        If an audio file is empty, corrupt or not sampled at 16 kHz, or a
        speaker has too few utterances.

    Example
    -------
    >>> prepare_speakers("/data/LibriSpeech", "results", [], skip_prep=True)
    """
    if skip_prep:
        return
    settings = {
        "data_folder": str(data_folder),
        "splits": list(splits),
        "share": share,
    }

    def read():
        rows = [r for split in splits for r in read_split(data_folder, split)]
        return split_speakers(rows, share, splits)

    write_once(save_folder, "librispeech_speakers", settings, COLUMNS, read)


def split_speakers(rows, share, splits):
    """The same rows, some of every speaker's in each table.

    Arguments
    ---------
    rows : list of tuple
        With the values of `COLUMNS`.
    share : float
        As `prepare_speakers` takes it.
    splits : list of str
        Where the rows are from, for the message.

    Returns
    -------
    dict
        "train", "valid", "test" -> rows.

    Raises
    ------
    ValueError
        If a speaker has too few.
    """
    spoken = defaultdict(list)
    for row in rows:
        spoken[row[COLUMNS.index("spk_id")]].append(row)
    tables = {"train": [], "valid": [], "test": []}
    for speaker, rows in spoken.items():
        apart = max(round(share * len(rows)), 1)
        if len(rows) < 2 * apart + 1:
            raise ValueError(
                f"speaker {speaker} has {len(rows)} utterances in {splits}: "
                f"too few to set {apart} apart twice; name other splits, or "
                "lower share"
            )
        # some of every chapter, the same in each run
        rows = sorted(rows, key=lambda row: row[0][::-1])
        parts = rows[2 * apart :], rows[:apart], rows[apart : 2 * apart]
        for name, part in zip(tables, parts):
            tables[name] += part
    return tables


def read_any_split(data_folder, split):
    """As `read_split`; or the audio of a folder without transcripts.

    Files that cannot be used are left out, as `read_folder` says.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits.
    split : str
        The name of one, or of any folder.

    Returns
    -------
    list of tuple
        One row per utterance, with the values of `COLUMNS`.
    """
    if transcripts_of(data_folder, split):
        return read_split(data_folder, split)
    found = read_folder(data_folder, split)
    return [(path, seconds, wav, "", "") for path, seconds, wav in found]


def transcripts_of(data_folder, split):
    """The files of transcripts in a split of LibriSpeech."""
    return sorted(Path(data_folder, split).glob("*/*/*.trans.txt"))


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
    transcripts = transcripts_of(data_folder, split)
    if not transcripts:
        raise FileNotFoundError(
            f"No transcripts in {Path(data_folder, split)}: set data_folder "
            f"to the folder that holds {split}, or download that split from "
            "http://www.openslr.org/12 (train-clean-5: openslr.org/31)"
        )
    utterances = [
        (path.parent, *[*line.split(maxsplit=1), ""][:2])
        for path in transcripts
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
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
    if not words:
        raise ValueError(f"the transcripts in {folder}: {utterance} is empty")
    path = folder / f"{utterance}.flac"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is in the transcripts but not on disk: unpack the "
            "archive of its split again."
        )
    seconds = seconds_of(path, REMEDY)
    wav = f"$data_root/{path.relative_to(data_folder)}"
    return utterance, seconds, wav, utterance.split("-")[0], words
