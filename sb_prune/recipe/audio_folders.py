"""Folders of audio files, in whatever order they lie there."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

from sb_prune.support.audio import SAMPLE_RATE, SUFFIXES

logger = get_logger(__name__)


def read_folder(data_folder, folder, shortest=1.0):
    """Describes the audio files of one folder.

    Arguments
    ---------
    data_folder : str
        From which paths are written.
    folder : str
        Below it.
    shortest : float
        In seconds.

    Returns
    -------
    list of tuple
        (path, seconds, path from `$data_root`) of each file, as text. Files
        that cannot be read, are shorter than `shortest`, have several
        channels, are not sampled at 16 kHz, or have a $ in the name, which
        SpeechBrain would replace, are left out; the log says how many.

    Raises
    ------
    FileNotFoundError
        If there is no audio file.
    ValueError
        If none is of use.
    """
    place = Path(data_folder, folder)
    files = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"No audio ({' '.join(SUFFIXES)}) in {place}: set "
            f"data_folder to the folder that holds {folder}, or name other "
            "splits"
        )
    names = [path.relative_to(data_folder).as_posix() for path in files]
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(partial(_read, shortest=shortest), files, names))
    rows = [
        (name, seconds)
        for name, seconds in zip(names, read)
        if isinstance(seconds, float)
    ]
    skipped = [found for found in read if not isinstance(found, float)]
    if skipped:
        reasons = {r: skipped.count(r) for r in sorted(set(skipped))}
        logger.warning(
            "%s: left out %d of %d files: %s",
            place,
            len(skipped),
            len(files),
            reasons,
        )
    if not rows:
        raise ValueError(f"{place}: none of {len(files)} files is of use")
    return [
        (path, f"{seconds:.4f}", f"$data_root/{path}") for path, seconds in rows
    ]


def _read(path, name, shortest):
    """Seconds of a file, or why it is left out."""
    if "$" in name:
        return "a $ in the name"
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError):
        return "unreadable"
    if info.samplerate != SAMPLE_RATE:
        return f"{info.samplerate} Hz"
    if info.channels > 1:
        return f"{info.channels} channels"
    if info.duration < shortest:
        return "too short"
    return info.duration
