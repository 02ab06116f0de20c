"""The record of a run: what must not change when it is continued.

`run.json` in the folder of the recipe's checkpointer holds the settings that
change the result, and how the model that the run started from was made.
"""

import json
import os

from sb_prune.run.descriptions import described
from sb_prune.support.disk import whole_file

PLACES = {"start_from", "teacher"}  # keys of folders, with a slash or without
RECORD = "run.json"
VERSION = 1  # of the record


def identity_of(given, without):
    """Describes the settings of a block that change the result of a run.

    Arguments
    ---------
    given : dict
        Key of the block -> value; `self` among them is left out.
    without : list of str
        Keys that do not change the result.

    Returns
    -------
    dict
        Key -> description.

    Example
    -------
    >>> identity_of({"self": 1, "seed": 7, "inference": "x"}, ["inference"])
    {'seed': '7'}
    """
    gone = {"self", *without}
    kept = {key: value for key, value in given.items() if key not in gone}
    for key in PLACES & kept.keys():
        if isinstance(kept[key], str):
            kept[key] = os.path.normpath(kept[key])
    return {key: described(value) for key, value in kept.items()}


def units_of(declaration):
    """Numbers of units of every structure; empty if nothing is declared."""
    structures = declaration.structures if declaration else ()
    return {s.name: s.units for s in structures}


def write_record(folder, blocks, units, history, checkpoints):
    """Writes the record of a run that begins.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.
    blocks : dict
        Name of a block -> identity of its phase.
    units : dict
        Name of a structure -> units, when pruning began.
    history : str
        How the start was made, as HyperPyYAML; empty if it is stock.
    checkpoints : dict
        Key of the block that names another run -> its checkpoint that was
        loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "version": VERSION,
        "blocks": blocks,
        "units": units,
        "history": history,
        "checkpoints": checkpoints,
    }
    with whole_file(folder / RECORD) as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(folder):
    """Reads the record of a run.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.

    Returns
    -------
    dict or None
        With `blocks`, `units`, `history` and `checkpoints`; None if there is
        none.

    Raises
    ------
    ValueError
        If it is damaged, or a later version of sb_prune wrote it.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = int(record["version"])
        if version <= VERSION:
            for identity in record["blocks"].values():
                identity.items()
            record["units"].items(), record["history"].strip()
            record.setdefault("checkpoints", {}).items()  # it is a later key
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, so nobody knows what the run beside it is; "
            "move the folder away to begin anew"
        ) from error
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version}, which a later sb_prune writes; "
            "finish the run with that one (pip install --upgrade sb_prune)"
        )
    return record


def check_same_run(folder, record, blocks, has_trained):
    """Refuses to continue a run with other settings, or none.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.
    record : dict or None
        The record of the run.
    blocks : dict
        The `blocks` of this command.
    has_trained : bool
        Whether there are checkpoints.

    Raises
    ------
    ValueError
        Naming the key, both values and what to do.
    """
    if record is None and has_trained:
        raise ValueError(
            f"{folder} holds checkpoints of another run, or of an earlier "
            f"version of sb_prune, as there is no {RECORD}; write another "
            "output_folder (and start_from, to begin with those), or finish "
            "it with that version"
        )
    if record is None:
        raise ValueError(
            f"{folder} holds no run of sb_prune; train first (run without "
            "--test_only)"
        )
    found = record["blocks"]
    for block in [*found, *blocks]:
        if block not in blocks or block not in found:
            has, do = ("without", "leave out")
            if block in found:
                has, do = ("with", "write")
            raise ValueError(
                f"output_folder: {folder} holds a run {has} a block {block}; "
                f"{do} that block, or write another output_folder"
            )
        before, now = found[block], blocks[block]
        for key in [*before, *now]:
            was, is_now = (said.get(key, str(None)) for said in (before, now))
            if was != is_now:  # a key that is new since then was not written
                raise ValueError(
                    f"output_folder: {folder} holds a run with another "
                    f"{block}: {key}: {was}, not {is_now}; "
                    "write another output_folder, or the old value"
                )


def check_units(folder, record, declaration):
    """Refuses to continue a run with another model.

    Arguments
    ---------
    folder : Path
        Folder of the recipe's checkpointer.
    record : dict
        The record of the run.
    declaration : Declaration
        Of the model now.

    Raises
    ------
    ValueError
        Naming a structure that is another one.
    """
    before, now = record["units"], units_of(declaration)
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"output_folder: {folder} holds a run of another model: "
                f"{name} has {now.get(name, 'no')} units, and had "
                f"{before.get(name, 'none')}; write another output_folder, or "
                "the old values"
            )
