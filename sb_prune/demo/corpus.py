"""A small LibriSpeech look-alike, synthesised in seconds.

Same layout and same transcripts format as the real data set, so that recipes
cannot tell the difference: a few voices read sentences of a small grammar.

    python -m sb_prune.demo.corpus FOLDER [--seed 1234 ...]
"""

import argparse
import inspect
import json
import os
import random
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from sb_prune.demo.espeak import Speaker, speak_all

SAMPLE_RATE = 16000
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
        How many.
    rng : random.Random
        Where the choices come from.

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
        Of sentences and noise.
    train_utterances, dev_utterances, test_utterances : int
        How many utterances of about 2.2 s each split has.

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
    folder = Path(folder).resolve()
    splits = {
        "train-clean-100": train_utterances,
        "dev-clean": dev_utterances,
        "test-clean": test_utterances,
    }
    settings = {"seed": seed, **splits}
    if _is_complete(folder, settings):
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    utterances = _plan(splits, random.Random(seed))
    _write_audio(partial, utterances, np.random.default_rng(seed))
    _write_transcripts(partial, utterances)
    (partial / MARKER).write_text(json.dumps(settings))
    os.replace(partial, folder)


def _is_complete(folder, settings):
    """Whether the folder is the corpus asked for; raises if another's."""
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


def _plan(splits, rng):
    """Lists (split, speaker, chapter, number, sentence) of all utterances."""
    pool = iter(sentences(sum(splits.values()), rng))
    speakers = list(SPEAKERS)
    return [
        (split, speakers[i % len(speakers)], chapter, i // len(speakers), text)
        for chapter, (split, count) in enumerate(splits.items(), start=1)
        for i, text in enumerate(islice(pool, count))
    ]


def _write_audio(folder, utterances, rng):
    """Speaks all utterances into flac files, with a little noise."""
    texts = [text for *_, text in utterances]
    speakers = [SPEAKERS[speaker] for _, speaker, *_ in utterances]
    spoken = speak_all(texts, speakers)
    progress = tqdm(utterances, desc="Synthesising", unit="utt")
    for (split, speaker, chapter, number, _), (samples, rate) in zip(
        progress, spoken, strict=True
    ):
        samples = resample(torch.from_numpy(samples), rate, SAMPLE_RATE)
        path = folder / split / str(speaker) / str(chapter)
        path.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            path / f"{speaker}-{chapter}-{number:04d}.flac",
            add_noise(samples.numpy(), rng),
            SAMPLE_RATE,
        )


def _write_transcripts(folder, utterances):
    """Writes one `<speaker>-<chapter>.trans.txt` beside its flac files."""
    for split, speaker, chapter, number, text in utterances:
        stem = f"{speaker}-{chapter}"
        path = folder / split / str(speaker) / str(chapter)
        with open(path / f"{stem}.trans.txt", "a", encoding="utf-8") as fout:
            fout.write(f"{stem}-{number:04d} {text}\n")


def add_noise(samples, rng):
    """Adds white noise 20 to 35 dB below the speech.

    Arguments
    ---------
    samples : numpy.ndarray
        Speech of shape (time,).
    rng : numpy.random.Generator
        Where the noise comes from.

    Returns
    -------
    numpy.ndarray
        Of the same shape, with its largest magnitude at 0.5.

    Example
    -------
    >>> float(add_noise(np.ones(4), np.random.default_rng(0)).max())
    0.5
    """
    level = samples.std() * 10 ** (-rng.uniform(20, 35) / 20)
    noisy = samples + level * rng.standard_normal(len(samples))
    return 0.5 * noisy / np.abs(noisy).max()


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    for name, default in inspect.signature(
        synthesise_librispeech
    ).parameters.items():
        if name != "folder":
            parser.add_argument(f"--{name}", type=int, default=default.default)
    synthesise_librispeech(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
