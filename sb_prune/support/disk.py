"""Files that survive a crash: complete ones are told from incomplete ones.

A checkpoint or folder that was only partly written or deleted when the process
was killed is called torn.
"""

import itertools
import json
import os
from contextlib import contextmanager
from pathlib import Path

from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

MARK = "complete"  # last file of a checkpoint, with the sizes of the others
LONGEST = 300  # characters; torch lists all keys of a model


def guard_(checkpointer):
    """Makes a checkpointer mark complete checkpoints, and see only these.

    SpeechBrain writes the meta file first and deletes a checkpoint file by
    file, so after a kill a torn checkpoint looks like a complete one. A guarded
    checkpointer adds a last file, `complete`, once all others have reached the
    disk; it lists their sizes. Checkpoints without it are not found. Errors in
    saving and loading name the folder and what to do.

    Arguments
    ---------
    checkpointer : Checkpointer
        Its methods `save_checkpoint`, `load_checkpoint` and `list_checkpoints`
        are wrapped, once.
    """
    if "save_checkpoint" in vars(checkpointer):
        return
    stock_save = checkpointer.save_checkpoint
    stock_load = checkpointer.load_checkpoint
    stock_list = checkpointer.list_checkpoints

    def save_checkpoint(meta=(), end_of_epoch=True, name=None, **kwargs):
        folder = checkpointer.checkpoints_dir
        with naming_what_fails(folder):
            if name is not None and if_main_process():  # it is overwritten
                (folder / f"CKPT+{name}" / MARK).unlink(missing_ok=True)
            saved = stock_save(dict(meta), end_of_epoch, name, **kwargs)
            if saved is not None:
                _mark_complete(saved.path)
        ddp_barrier()  # so that all processes find it from now on
        return saved

    def load_checkpoint(checkpoint):
        try:
            stock_load(checkpoint)
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(
                f"{checkpoint.path} cannot be loaded: it is damaged, or was "
                "saved with other values in the YAML; write these again, or "
                "use another output_folder, or move it away and rerun "
                f"({reason(error)})"
            ) from error

    def list_checkpoints():
        return [found for found in stock_list() if is_marked(found.path)]

    checkpointer.save_checkpoint = save_checkpoint
    checkpointer.list_checkpoints = list_checkpoints
    checkpointer.load_checkpoint = load_checkpoint


@contextmanager
def naming_what_fails(folder):
    """Context in which a failure to write names the folder and a remedy.

    Arguments
    ---------
    folder : Path
        Where the code inside the context writes.

    Raises
    ------
    OSError
        In place of an OSError, or of a RuntimeError from torch's writer.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{folder} cannot be written ({reason(error)}); what was "
            "complete before is intact: if the disk is full make room, then "
            "run the same command again"
        ) from error


def _mark_complete(folder):
    flush(folder)
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    mark = folder / MARK
    mark.write_text(json.dumps(sizes), encoding="utf-8")
    _flush_one(mark)
    _flush_one(folder)


def _damage(folder):
    """Says what is wrong with a checkpoint, or returns None."""
    try:
        text = (folder / MARK).read_text(encoding="utf-8")
        sizes = json.loads(text)
    except (OSError, ValueError):
        return "it was not saved to its end"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return None


def is_marked(folder):
    """Whether a guarded checkpointer has saved a checkpoint to its end.

    Arguments
    ---------
    folder : Path

    Returns
    -------
    bool
    """
    return Path(folder, MARK).is_file()


def set_torn_aside(folder):
    """Renames the torn checkpoints in a folder, so that the user sees them.

    Only where nothing else can be training: what is being written is not torn.

    Arguments
    ---------
    folder : Path
        Where a guarded checkpointer saves (see `guard_`).
    """
    for path in sorted(Path(folder).glob("CKPT*")):
        damage = _damage(path)
        if damage is not None:
            _set_aside(path, damage)


def set_torn_snapshot_aside(folder):
    """Renames a torn snapshot, so that it is not loaded.

    Arguments
    ---------
    folder : Path
        A folder of `save_snapshot`, which need not exist.
    """
    folder = Path(folder)
    if folder.is_dir():
        damages = [_damage(path) for path in folder.glob("CKPT*")]
        if damages != [None]:
            _set_aside(folder, damages[0] if damages else "it is empty")


def _set_aside(path, damage):
    names = (f"torn-{path.name}{i or ''}" for i in itertools.count())
    target = next(t for t in map(path.with_name, names) if not t.exists())
    path.rename(target)
    logger.warning(
        f"{path} is torn: {damage}. Set aside as {target.name}, which may be "
        "deleted; the run continues from what is whole"
    )


def flush(folder):
    """Waits until a folder and everything in it have reached the disk.

    Arguments
    ---------
    folder : Path
    """
    for path in [*folder.rglob("*"), folder]:
        _flush_one(path)


def _flush_one(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def rename_(source, target):
    """Renames a folder or file in one step that also survives a power cut.

    Arguments
    ---------
    source : Path
        It is flushed to disk first.
    target : Path
        Its new name, beside `source`; a file may be there, a folder not.
    """
    flush(source)
    os.replace(source, target)
    _flush_one(target.parent)


@contextmanager
def whole_file(path):
    """Context with a path beside another one, which it becomes at the end.

    Arguments
    ---------
    path : Path
        Of the file, which is there only when it is whole.

    Raises
    ------
    OSError
        As `naming_what_fails` has it.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "words.txt")
    ...     with whole_file(path) as aside:
    ...         _ = aside.write_text("some")
    ...         before = path.exists()
    ...     before, path.read_text()
    (False, 'some')
    """
    aside = path.with_name(f"{path.name}.incomplete")
    with naming_what_fails(path):
        yield aside
        rename_(aside, path)


def reason(error):
    """The message of an error, without the stack frames that torch appends.

    Arguments
    ---------
    error : Exception

    Returns
    -------
    str
        One line, cut off where it is very long.

    Example
    -------
    >>> reason(RuntimeError("no space\\nframe #0: ..."))
    'no space'
    >>> reason(RuntimeError("Errors for Linear:\\n\\tsize mismatch"))
    'Errors for Linear: size mismatch'
    """
    lines = (str(error) or type(error).__name__).strip().splitlines()
    detail = lines[1:2] if lines[0].endswith(":") else []
    said = " ".join(line.strip() for line in lines[:1] + detail)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
