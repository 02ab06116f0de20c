"""`deploy.json`, which says what the files of a deployed model are."""

import json
from pathlib import Path

from sb_prune.support.hashes import check_hash, file_hash

FILE, FORMAT = "deploy.json", 2
NEEDED = {"kind", "sample_rate"}
FEATURES = "features.onnx"  # where they are a graph of their own


class DeployError(ValueError):
    """Says why a model cannot be deployed or run, and what to do."""


def write_settings(folder, settings):
    """Writes `deploy.json`, with a hash of every other file.

    Arguments
    ---------
    folder : Path
    settings : dict
        What JSON can hold; see `read_settings`.
    """
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT, **settings, "files": files}, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_settings(folder):
    """Reads `deploy.json`, and looks for the files that it names.

    Arguments
    ---------
    folder : str

    Returns
    -------
    dict
        kind: one of `sb_prune.deploy.runtime.kinds.KINDS`; sample_rate; opset;
        files: name -> SHA-256; and what the runtime of that kind needs.

    Raises
    ------
    DeployError
        If the folder is no deployed model, another version wrote it, or a file
        is missing.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise DeployError(
            f"{folder} has no {FILE}; name a folder that `python -m "
            "sb_prune.deploy EXPORT --output FOLDER` has written"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        format, files = settings["format"], settings["files"]
        if not (isinstance(format, int) and isinstance(files, dict)):
            raise TypeError
        if format == FORMAT and not NEEDED <= settings.keys():
            raise KeyError
    except (ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"{path} cannot be read (truncated or edited?); deploy the model "
            "again"
        ) from error
    if format > FORMAT:
        raise DeployError(
            f"{path} has format {format}, and this version of sb_prune reads "
            f"up to {FORMAT}; install a later one"
        )
    if format < FORMAT:
        raise DeployError(
            f"{path} has format {format}, of an earlier version of sb_prune; "
            "deploy the model again"
        )
    for name in files:
        file = path.with_name(name)
        if not file.is_file():
            raise DeployError(f"{file} is missing; copy the whole folder again")
    return settings


def check_files(folder, settings):
    """Checks that files are those that were written.

    Arguments
    ---------
    folder : str
    settings : dict
        From `read_settings`.

    Raises
    ------
    DeployError
        If a file has another hash.
    """
    for name, sha256 in settings["files"].items():
        try:
            check_hash(Path(folder, name), sha256)
        except ValueError as error:
            raise DeployError(str(error)) from error
