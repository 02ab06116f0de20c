"""SLURP (https://github.com/pswietojanski/slurp) to csv files.

What a command means is one line, as text that a decoder can learn: scenario,
action and entities, written as in SLURP's own annotation:

    alarm set [time : seven am] [date : tomorrow]
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from speechbrain.utils.logger import get_logger

from sb_prune.recipe.manifests import seconds_of, write_once

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "semantics", "transcript", "intent")
SYNTHETIC = "train_synthetic"  # the split with a folder of its own
REMEDY = (
    "unpack its archive again, or remove the file, and the recording counts "
    "as missing."
)
NAME = r"([^\s\[\]]+)"
FILLER = r"([^\[\]]*[^\s\[\]])"
ENTITY = rf" \[{NAME} : {FILLER}\]"
COMMAND = re.compile(rf"{NAME} {NAME}((?:{ENTITY})*)")


@dataclass(frozen=True)
class Command:
    """One annotated sentence.

    Arguments
    ---------
    transcript : str
        What is said.
    semantics : str
        As `format_semantics` writes it.
    intent : str
        `scenario_action`.
    recordings : tuple of str
        Names of the audio files in which it is said.
    """

    transcript: str
    semantics: str
    intent: str
    recordings: tuple


def prepare_slurp(
    text_folder,
    audio_folder,
    save_folder,
    train_splits=("train",),
    skip_prep=False,
):
    """Writes `train.csv`, `devel.csv` and `test.csv`.

    Each row is a recording; its ID is the name of its file. The csv files name
    the audio relative to `$data_root`, the audio folder. Recordings that are
    not on disk are left out, and counted in the log. When the csv files were
    already written for the same folders and splits, nothing is done; when
    anything is wrong with the data, nothing is written.

    Arguments
    ---------
    text_folder : str
        The folder of `train.jsonl`, `devel.jsonl` and `test.jsonl`.
    audio_folder : str
        The folder that holds `slurp_real` (and `slurp_synth`).
    save_folder : str
        Where the csv files go.
    train_splits : list of str
        What to train on: `train`, `train_synthetic` or both.
    skip_prep : bool
        Whether to trust the csv files that are there.

    Raises
    ------
    FileNotFoundError
        If the text, or every recording, of a split is missing.
    ValueError
        If a line lacks a field, a recording is listed twice, or an audio file
        is empty, corrupt or not sampled at 16 kHz.

    Example
    -------
    >>> prepare_slurp("dataset/slurp", "audio", "results", skip_prep=True)
    """
    if skip_prep:
        return
    tables = {"train": list(train_splits), "devel": ["devel"], "test": ["test"]}
    if not train_splits:
        raise ValueError(
            f"train_splits: nothing to train on; write [train, {SYNTHETIC}] or "
            "one of them"
        )
    settings = {
        "text_folder": str(text_folder),
        "audio_folder": str(audio_folder),
        "train_splits": tables["train"],
    }

    def read():
        return {
            name: [
                row
                for split in splits
                for row in read_split(text_folder, audio_folder, split)
            ]
            for name, splits in tables.items()
        }

    write_once(save_folder, "slurp_prepare", settings, COLUMNS, read)


def read_split(text_folder, audio_folder, split):
    """Describes the recordings of one split that are on disk.

    Arguments
    ---------
    text_folder : str
        The folder of the jsonl files.
    audio_folder : str
        The folder that holds `slurp_real` and `slurp_synth`.
    split : str
        `train`, `train_synthetic`, `devel` or `test`.

    Returns
    -------
    list of tuple
        One row per recording, with the values of `COLUMNS`.

    Raises
    ------
    FileNotFoundError
        If the text is missing, or every recording is.
    ValueError
        If a line or an audio file is not as it should be.
    """
    commands = read_commands(Path(text_folder) / f"{split}.jsonl")
    folder = "slurp_synth" if split == SYNTHETIC else "slurp_real"
    said = [(name, c) for c in commands for name in c.recordings]
    found = [
        (name, command)
        for name, command in said
        if Path(audio_folder, folder, name).is_file()
    ]
    _report_missing(split, Path(audio_folder, folder), said, found)

    def describe(name, command):
        seconds = seconds_of(Path(audio_folder, folder, name), REMEDY)
        wav = f"$data_root/{folder}/{name}"
        meant = command.semantics, command.transcript, command.intent
        return name, seconds, wav, *meant

    with ThreadPoolExecutor() as pool:
        return list(pool.map(describe, *zip(*found)))


def _report_missing(split, folder, said, found):
    """Says how many recordings are on disk; refuses to go on without any."""
    missing = len(said) - len(found)
    if not found:
        raise FileNotFoundError(
            f"All {missing} recordings of {split}.jsonl are missing from "
            f"{folder}: set audio_folder to the folder that holds "
            f"{folder.name}, or unpack {folder.name}.tar.gz from "
            "https://zenodo.org/record/4274930 there"
        )
    if missing:
        here = {name for name, _ in found}
        example = next(name for name, _ in said if name not in here)
        logger.warning(
            "SLURP %s: %d of %d recordings are missing from %s (%s is one); "
            "they are left out",
            split,
            missing,
            len(said),
            folder,
            example,
        )
    logger.info("SLURP %s: %d recordings", split, len(found))


def read_commands(path):
    """Reads the sentences of one jsonl file.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    list of Command

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is not as SLURP's should be, or a recording is in two.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: set text_folder to the folder of SLURP's "
            "jsonl files (dataset/slurp of "
            "https://github.com/pswietojanski/slurp), and train_splits to "
            "those that are there"
        )
    commands, line_of = [], {}
    with open(path, encoding="utf-8") as fin:
        for number, line in enumerate(fin, start=1):
            try:
                command = parse_command(line)
                _claim(command.recordings, number, line_of)
            except ValueError as err:
                raise ValueError(f"{path}, line {number}: {err}") from err
            commands.append(command)
    return commands


def _claim(recordings, number, line_of):
    """Notes in which line each recording is; it can be in one only."""
    for name in recordings:
        if name in line_of:
            raise ValueError(f"{name} is already in line {line_of[name]}")
        line_of[name] = number


def parse_command(line):
    """Reads one line of a jsonl file.

    What an entity is called is taken from the tokens, in lower case, because
    that is what SLURP's evaluation compares with.

    Arguments
    ---------
    line : str
        JSON.

    Returns
    -------
    Command

    Raises
    ------
    ValueError
        Naming the field that is missing or wrong.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as err:
        raise ValueError(f"unreadable JSON ({err})") from err
    words = [
        _field(token, "surface", str, f"tokens[{i}].").lower()
        for i, token in enumerate(_field(record, "tokens", list))
    ]
    semantics = {
        "scenario": _field(record, "scenario", str),
        "action": _field(record, "action", str),
        "entities": [
            _entity(entity, words, f"entities[{i}].")
            for i, entity in enumerate(_field(record, "entities", list))
        ],
    }
    recordings = _field(record, "recordings", list)
    return Command(
        transcript=_field(record, "sentence", str),
        semantics=format_semantics(semantics),
        intent=f"{semantics['scenario']}_{semantics['action']}",
        recordings=tuple(
            _field(recording, "file", str, f"recordings[{i}].")
            for i, recording in enumerate(recordings)
        ),
    )


def _entity(entity, words, place):
    """The type of an entity, and the words it spans."""
    span = _field(entity, "span", list, place)
    if not span or not all(i in range(len(words)) for i in span):
        raise ValueError(
            f"field '{place}span' is {span}, which are not places of the "
            f"{len(words)} tokens"
        )
    filler = " ".join(words[i] for i in span)
    return {"type": _field(entity, "type", str, place), "filler": filler}


def _field(record, name, kind, place=""):
    """A value of a JSON object, checked."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"no field '{place}{name}'")
    value = record[name]
    if not isinstance(value, kind):
        raise ValueError(
            f"field '{place}{name}' is {value!r}, not a {kind.__name__}"
        )
    return value


def format_semantics(semantics):
    """Writes semantics as one line.

    Arguments
    ---------
    semantics : dict
        `scenario` and `action` are str, `entities` is a list of dict with
        `type` and `filler`; the form that SLURP's evaluation reads.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the line could not be read back, e.g. for a bracket in a filler.

    Example
    -------
    >>> entity = {"type": "time", "filler": "seven am"}
    >>> format_semantics(
    ...     {"scenario": "alarm", "action": "set", "entities": [entity]}
    ... )
    'alarm set [time : seven am]'
    """
    entities = (
        f" [{entity['type']} : {entity['filler']}]"
        for entity in semantics["entities"]
    )
    text = f"{semantics['scenario']} {semantics['action']}{''.join(entities)}"
    try:
        understood = parse_semantics(text)
    except ValueError:
        understood = None
    if understood != semantics:
        raise ValueError(f"{semantics} cannot be written as semantics")
    return text


def parse_semantics(text):
    """Reads semantics, the inverse of `format_semantics`.

    Arguments
    ---------
    text : str
        Such as a decoder's output.

    Returns
    -------
    dict
        With `scenario`, `action` and `entities`.

    Raises
    ------
    ValueError
        If the text has any other form.

    Example
    -------
    >>> parse_semantics("play music [music_genre : jazz]")["entities"]
    [{'type': 'music_genre', 'filler': 'jazz'}]
    """
    command = COMMAND.fullmatch(text)
    if command is None:
        raise ValueError(f"{text!r} is not 'scenario action [type : filler]'")
    scenario, action, entities = command.group(1, 2, 3)
    return {
        "scenario": scenario,
        "action": action,
        "entities": [
            {"type": kind, "filler": filler}
            for kind, filler in re.findall(ENTITY, entities)
        ],
    }
