"""Files that are what they were when they were written, or are refused."""

import hashlib


def check_hash(path, sha256):
    """Refuses a file that is not the one exported.

    Arguments
    ---------
    path : str
        The file.
    sha256 : str
        What it must hash to.

    Raises
    ------
    ValueError
    """
    if file_hash(path) != sha256:
        raise ValueError(
            f"{path} is not the file that was exported (truncated, edited or "
            "of another export); copy the whole folder again"
        )


def file_hash(path):
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
