"""A small SLURP look-alike, synthesised in a minute.

A few voices give commands of a small grammar to a home assistant. Folders and
fields are those of the real data set, so that recipes read both alike.

    python -m sb_prune.demo.slurp FOLDER [--seed 1234 ...]
"""

import json
import random
import re
from functools import partial
from itertools import count, islice, product
from math import prod

import numpy as np

from sb_prune.demo.synthesis import (
    SPEAKERS,
    run_from_command_line,
    write_audio,
    write_once,
)


def _joined(*choices):
    """All phrases of one word from each string of words."""
    return [" ".join(words) for words in product(*map(str.split, choices))]


FILLERS = {
    "time": _joined("one two three four five six seven eight nine ten", "am pm")
    + _joined("half", "past", "one two three four five six seven eight nine"),
    "date": _joined("monday tuesday wednesday thursday friday saturday sunday")
    + _joined("next", "monday tuesday wednesday thursday friday week month")
    + ["today", "tomorrow"],
    "event_name": _joined(
        "birthday office family school garden wedding", "party lunch meeting"
    )
    + "dentist haircut concert interview picnic barbecue".split(),
    "person": "anna robert julia martin sophie daniel laura peter emma victor "
    "helen oscar nora simon clara philip".split(),
    "artist_name": _joined(
        "johnny ella miles nina ray dolly stevie joan",
        "carter morgan parker rivers baker simmons",
    ),
    "music_genre": "jazz rock blues country folk reggae soul techno".split(),
    "place_name": "london paris berlin madrid boston chicago denver seattle "
    "toronto sydney dublin edinburgh vienna lisbon oslo prague".split(),
    "weather_descriptor": "rain snow sunshine wind fog thunder hail".split(),
    "list_name": "shopping grocery packing reading wish cleaning".split(),
    "house_place": "kitchen bedroom bathroom hallway garage office".split()
    + ["living room", "dining room"],
    "color_type": "red green blue yellow purple orange white pink".split(),
    "transport_type": "train bus taxi ferry tram plane".split(),
}

# (scenario, action) -> patterns; [type] stands for a filler of that type
PATTERNS = {
    ("alarm", "set"): (
        "wake me up at [time]",
        "wake me up [date] at [time]",
        "set an alarm for [time] [date]",
        "i need an alarm at [time]",
    ),
    ("calendar", "set"): (
        "remind me of the [event_name] [date]",
        "add the [event_name] with [person] to my calendar",
        "put a [event_name] with [person] at [time] in my calendar",
        "schedule the [event_name] for [date] at [time]",
    ),
    ("calendar", "remove"): (
        "cancel the [event_name] with [person]",
        "remove the [event_name] from my calendar",
        "delete my [event_name] of [date]",
        "clear my calendar for [date]",
    ),
    ("play", "music"): (
        "play some [music_genre]",
        "play [artist_name] please",
        "play the new song by [artist_name]",
        "i want to hear [music_genre] by [artist_name]",
    ),
    ("weather", "query"): (
        "what is the weather in [place_name]",
        "will there be [weather_descriptor] in [place_name] [date]",
        "is [weather_descriptor] expected [date]",
        "tell me the weather for [date]",
    ),
    ("lists", "createoradd"): (
        "make a new [list_name] list",
        "start a [list_name] list for [date]",
        "create a [list_name] list for the [event_name]",
        "i need a [list_name] list for [person]",
    ),
    ("iot", "hue_lightchange"): (
        "make the lights in the [house_place] [color_type]",
        "change the [house_place] lights to [color_type]",
        "turn the lights [color_type]",
        "set the lights to [color_type] at [time]",
    ),
    ("iot", "hue_lightoff"): (
        "turn off the lights in the [house_place]",
        "switch the [house_place] lights off at [time]",
        "no light in the [house_place] [date] please",
        "turn the lights off in the [house_place] at [time]",
    ),
    ("email", "sendemail"): (
        "send an email to [person]",
        "write to [person] about the [event_name]",
        "email [person] that i am late [date]",
        "answer the mail from [person]",
    ),
    ("transport", "query"): (
        "when does the [transport_type] to [place_name] leave",
        "find a [transport_type] to [place_name] [date]",
        "what time is the next [transport_type] to [place_name]",
        "how do i get to [place_name] by [transport_type]",
    ),
}


def commands(number, rng):
    """Draws different annotated sentences of the grammar.

    Intents are drawn alike, and so are the patterns of an intent.

    Arguments
    ---------
    number : int
        Number of sentences.
    rng : random.Random
        Generator that makes the choices.

    Returns
    -------
    list of tuple
        (scenario, action, annotation), no two annotations the same.

    Raises
    ------
    ValueError
        If the grammar is too small.

    Example
    -------
    >>> commands(1, random.Random(0))  # doctest: +ELLIPSIS
    [('iot', 'hue_lightchange', 'set the lights to [color_type : red] at ...')]
    """
    most = sum(map(_possible, PATTERNS)) // 4  # so that drawing ends soon
    if number > most:
        raise ValueError(
            f"{number} utterances are more than this grammar can say without "
            f"repeating itself: ask for at most {most}."
        )
    drawn = {}
    while len(drawn) < number:
        intent = rng.choice(list(PATTERNS))
        pattern = rng.choice(PATTERNS[intent])
        annotation = re.sub(
            r"\[(\w+)\]", lambda slot: _annotated(slot[1], rng), pattern
        )
        drawn[annotation] = intent
    return [(*intent, annotation) for annotation, intent in drawn.items()]


def _possible(intent):
    """How many sentences an intent has."""
    return sum(
        prod(len(FILLERS[slot]) for slot in re.findall(r"\[(\w+)\]", pattern))
        for pattern in PATTERNS[intent]
    )


def _annotated(slot, rng):
    return f"[{slot} : {rng.choice(FILLERS[slot])}]"


def release_line(slurp_id, scenario, action, annotation):
    """Describes one sentence, and its one recording, as SLURP's jsonl does.

    Arguments
    ---------
    slurp_id : int
        Number of the sentence.
    scenario, action : str
        Its intent.
    annotation : str
        The sentence, entities as `[type : filler]`.

    Returns
    -------
    dict
        With SLURP's fields in SLURP's order. Lemmas are the words themselves
        and every part of speech is "X": nothing here can tell them.

    Example
    -------
    >>> line = release_line(7, "play", "music", "play [music_genre : jazz]")
    >>> line["sentence"], line["entities"]
    ('play jazz', [{'span': [1], 'type': 'music_genre'}])
    """
    words, entities = [], []
    for slot, filler, word in re.findall(
        r"\[(\w+) : ([^]]+)\]|(\S+)", annotation
    ):
        start = len(words)
        words += (filler or word).split()
        if slot:
            span = list(range(start, len(words)))
            entities.append({"span": span, "type": slot})
    recording = {
        "file": f"audio-{slurp_id:010d}.flac",
        "wer": 0.0,
        "ent_wer": 0.0,
        "status": "correct",
    }
    return {
        "slurp_id": slurp_id,
        "sentence": " ".join(words),
        "sentence_annotation": annotation,
        "intent": f"{scenario}_{action}",
        "action": action,
        "tokens": [
            {"surface": word, "id": i, "lemma": word, "pos": "X"}
            for i, word in enumerate(words)
        ],
        "scenario": scenario,
        "recordings": [recording],
        "entities": entities,
    }


def synthesise_slurp(
    folder,
    seed=1234,
    train_utterances=1000,
    devel_utterances=100,
    test_utterances=250,
):
    """Writes the splits train, devel and test into a new folder.

    Text is in `dataset/slurp/<split>.jsonl` and speech in `audio/slurp_real`,
    as in a clone of SLURP's repository after its `download_audio.sh`.

    The same arguments give the same files, bit for bit. A folder that is
    already complete is left as it is. The three splits share their speakers
    and their vocabulary, never a sentence.

    Arguments
    ---------
    folder : str
        The data folder to create.
    seed : int
        Seed of the sentences and of the noise.
    train_utterances, devel_utterances, test_utterances : int
        Number of utterances, of about 2 s each, in the splits.

    Raises
    ------
    ValueError
        If the folder holds something else, or the grammar is too small.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "slurp"
    >>> synthesise_slurp(folder, 0, 1, 1, 1)
    >>> print(*sorted(path.name for path in folder.iterdir()))
    audio dataset synthesis.json
    """
    splits = {
        "train": train_utterances,
        "devel": devel_utterances,
        "test": test_utterances,
    }
    settings = {"seed": seed, **splits}
    write_once(folder, settings, partial(_write, splits=splits, seed=seed))


def _write(folder, splits, seed):
    """Writes all files of the corpus but the marker."""
    drawn = commands(sum(splits.values()), random.Random(seed))
    lines = [release_line(i, *command) for i, command in zip(count(), drawn)]
    voices = list(SPEAKERS.values())
    write_audio(
        [
            folder / "audio/slurp_real" / recording["file"]
            for line in lines
            for recording in line["recordings"]
        ],
        [line["sentence"] for line in lines],
        [voices[i % len(voices)] for i in range(len(lines))],
        np.random.default_rng(seed),
    )
    text = folder / "dataset/slurp"
    text.mkdir(parents=True)
    remaining = iter(lines)
    for split, number in splits.items():
        with open(text / f"{split}.jsonl", "w", encoding="utf-8") as fout:
            for line in islice(remaining, number):
                fout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run_from_command_line(synthesise_slurp, __doc__.splitlines()[0])
