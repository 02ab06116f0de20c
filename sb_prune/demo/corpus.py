"""A small LibriSpeech look-alike, synthesised in seconds.

A few voices read sentences of a small grammar. Folders and transcripts are laid
out as in the real data set, so that recipes read both alike.

    python -m sb_prune.demo.corpus FOLDER [--seed 1234 ...]
"""

import random
from functools import partial
from itertools import islice

import numpy as np

from sb_prune.demo.synthesis import (
    SPEAKERS,
    run_from_command_line,
    write_audio,
    write_once,
)

WORDS = {
    "who": "TEACHER FARMER DOCTOR SISTER BROTHER NEIGHBOUR CAPTAIN ARTIST "
    "SOLDIER WRITER LAWYER BAKER".split(),
    "like": "OLD YOUNG HAPPY QUIET CLEVER TIRED LITTLE FAMOUS".split(),
    "did": "FOUND BOUGHT PAINTED CARRIED WATCHED FORGOT OPENED COUNTED "
    "BROKE WANTED".split(),
    "number": "TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN".split(),
    "colour": "RED GREEN YELLOW PURPLE ORANGE WHITE BLACK SILVER".split(),
    "things": "HOUSES BOTTLES WINDOWS HORSES LETTERS FLOWERS BASKETS BOATS "
    "CANDLES JACKETS TABLES PICTURES".split(),
    "where": "NEAR BEHIND UNDER ABOVE BEYOND".split(),
    "place": "RIVER GARDEN STATION MOUNTAIN KITCHEN MARKET BRIDGE FOREST "
    "CASTLE ISLAND".split(),
    "whose": "THE MY YOUR OUR THEIR".split(),
    "went": "WALKED TRAVELLED WAITED SLEPT WORKED STAYED".split(),
    "when": "TODAY YESTERDAY OFTEN AGAIN TOGETHER ALONE".split(),
}

PATTERNS = (
    "whose who did number colour things",
    "whose like who went where whose place",
    "number like things went when",
    "whose who went where whose place when",
)


def sentences(count, rng):
    """Draws different sentences of the grammar.

    Arguments
    ---------
    count : int
        Number of sentences.
    rng : random.Random
        Generator that makes the choices.

    Returns
    -------
    list of str
        Upper-case sentences, no two the same.

    Example
    -------
    >>> sentences(1, random.Random(0))
    ['OUR TEACHER WAITED BEYOND OUR BRIDGE OFTEN']
    """
    drawn = {}
    while len(drawn) < count:
        pattern = rng.choice(PATTERNS).split()
        drawn[" ".join(rng.choice(WORDS[slot]) for slot in pattern)] = None
    return list(drawn)


def synthesise_librispeech(
    folder,
    seed=1234,
    train_utterances=900,
    dev_utterances=64,
    test_utterances=192,
):
    """Writes train-clean-100, dev-clean and test-clean into a new folder.

    The same arguments give the same files, bit for bit. A folder that is
    already complete is left as it is. The three splits share their speakers
    and their vocabulary, never a sentence.

    Arguments
    ---------
    folder : str
        The data folder to create.
    seed : int
        Seed of the sentences and of the noise.
    train_utterances, dev_utterances, test_utterances : int
        Number of utterances, of about 2.2 s each, in the splits.

    Raises
    ------
    ValueError
        If the folder holds something else.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "LibriSpeech"
    >>> synthesise_librispeech(folder, 0, 1, 1, 1)
    >>> print(*sorted(path.name for path in folder.iterdir()))
    dev-clean synthesis.json test-clean train-clean-100
    """
    splits = {
        "train-clean-100": train_utterances,
        "dev-clean": dev_utterances,
        "test-clean": test_utterances,
    }
    settings = {"seed": seed, **splits}
    write_once(folder, settings, partial(_write, splits=splits, seed=seed))


def _write(folder, splits, seed):
    """Writes all files of the corpus but the marker."""
    utterances = _plan(splits, random.Random(seed))
    write_audio(
        [_path(folder, *where, ".flac") for *where, _ in utterances],
        [text for *_, text in utterances],
        [SPEAKERS[speaker] for _, speaker, *_ in utterances],
        np.random.default_rng(seed),
    )
    _write_transcripts(folder, utterances)


def _plan(splits, rng):
    """Lists (split, speaker, chapter, number, sentence) of all utterances."""
    pool = iter(sentences(sum(splits.values()), rng))
    speakers = list(SPEAKERS)
    return [
        (split, speakers[i % len(speakers)], chapter, i // len(speakers), text)
        for chapter, (split, count) in enumerate(splits.items(), start=1)
        for i, text in enumerate(islice(pool, count))
    ]


def _path(folder, split, speaker, chapter, number, suffix):
    name = f"{speaker}-{chapter}-{number:04d}{suffix}"
    return folder / split / str(speaker) / str(chapter) / name


def _write_transcripts(folder, utterances):
    """Writes one `<speaker>-<chapter>.trans.txt` beside its flac files."""
    for split, speaker, chapter, number, text in utterances:
        path = _path(folder, split, speaker, chapter, number, "")
        transcript = path.with_name(f"{speaker}-{chapter}.trans.txt")
        with open(transcript, "a", encoding="utf-8") as fout:
            fout.write(f"{path.name} {text}\n")


if __name__ == "__main__":
    run_from_command_line(synthesise_librispeech, __doc__.splitlines()[0])
