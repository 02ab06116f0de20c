"""A small Speech Commands look-alike, synthesised in a minute.

Many voices say one word in each file. Folders, names and lists are those of the
real data set, so that recipes read both alike.

    python -m sb_prune.demo.speech_commands FOLDER [--seed 1234 ...]
"""

import random
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from sb_prune.demo.espeak import Speaker
from sb_prune.demo.synthesis import (
    run_from_command_line,
    write_audio,
    write_once,
)

WORDS = (
    "yes no up down left right on off stop go zero one two three four five six "
    "seven eight nine bed bird cat dog happy house marvin sheila tree wow "
    "backward forward follow learn visual"
).split()
ACCENTS = ("en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-029")
TIMBRES = ("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f3", "f4", "f5")
LISTS = ("validation_list.txt", "testing_list.txt")


def voices(number, rng):
    """Draws different voices, each with a speed and a pitch of its own.

    Arguments
    ---------
    number : int
        Number of voices.
    rng : random.Random
        Generator that makes the choices.

    Returns
    -------
    dict
        Eight hexadecimal digits, as in the data set -> Speaker.

    Raises
    ------
    ValueError
        If there are not so many.

    Example
    -------
    >>> voices(1, random.Random(0))
    {'e3e70682': Speaker(voice='en-029+f5', rate=142, pitch=43)}
    """
    names = [
        f"{accent}+{timbre}" for accent, timbre in product(ACCENTS, TIMBRES)
    ]
    if number > len(names):
        raise ValueError(f"speakers: {number}; there are {len(names)} voices")
    return {
        f"{rng.randrange(16**8):08x}": Speaker(
            name, rng.randint(140, 190), rng.randint(35, 65)
        )
        for name in rng.sample(names, number)
    }


def synthesise_speech_commands(
    folder, seed=1234, speakers=40, repetitions=3, words=10, jitter=0, snr=20
):
    """Writes words by all speakers into a new folder.

    The same arguments give the same files, bit for bit. A folder that is
    already complete is left as it is. A tenth of the speakers, at least one,
    is for validation, another for testing, as in the data set's own lists.

    Arguments
    ---------
    folder : str
        The data folder to create.
    seed : int
        Seed of the voices and of the noise.
    speakers : int
        Number of speakers, at least 3.
    repetitions : int
        How often each says each word.
    words : int
        Number of words, of the 35 of the data set.
    jitter : int
        How far a recording may be from its speaker's speed (words per minute)
        and pitch (of 0 to 99), 0 to 30.
    snr : int
        Signal-to-noise ratio of the noisiest recordings, in dB.

    Raises
    ------
    ValueError
        If the folder holds something else, or an argument is out of range.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "commands"
    >>> synthesise_speech_commands(folder, 0, speakers=3, repetitions=1)
    >>> len(list(folder.glob("yes/*_nohash_0.wav")))
    3
    """
    if speakers < 3:
        raise ValueError(f"speakers: {speakers}; three splits need 3 or more")
    if not 2 <= words <= len(WORDS):
        raise ValueError(f"words: {words}; write 2 to {len(WORDS)}")
    if not 0 <= jitter <= 30:
        raise ValueError(f"jitter: {jitter}; write 0 to 30")
    settings = {
        "seed": seed,
        "speakers": speakers,
        "repetitions": repetitions,
        "words": words,
        "jitter": jitter,
        "snr": snr,
    }
    write_once(folder, settings, partial(_write, **settings))


def _write(folder, seed, speakers, repetitions, words, jitter, snr):
    """Writes all files of the corpus but the marker."""
    rng = random.Random(seed)
    drawn = voices(speakers, rng)
    said = [
        (word, name, number)
        for name in drawn
        for word, number in product(WORDS[:words], range(repetitions))
    ]
    write_audio(
        [folder / _file(*what) for what in said],
        [word for word, *_ in said],
        [_recorded(drawn[name], jitter, rng) for _, name, _ in said],
        np.random.default_rng(seed),
        snr,
    )
    names, tenth = list(drawn), max(speakers // 10, 1)
    for i, file in enumerate(LISTS):
        inside = names[i * tenth : (i + 1) * tenth]
        lines = [_file(*what) for what in said if what[1] in inside]
        (folder / file).write_text("\n".join(sorted(lines)) + "\n", "utf-8")


def _recorded(speaker, jitter, rng):
    """How a speaker says one word."""
    return replace(
        speaker,
        rate=speaker.rate + rng.randint(-jitter, jitter),
        pitch=speaker.pitch + rng.randint(-jitter, jitter),
    )


def _file(word, name, number):
    return f"{word}/{name}_nohash_{number}.wav"


if __name__ == "__main__":
    run_from_command_line(synthesise_speech_commands, __doc__.splitlines()[0])
