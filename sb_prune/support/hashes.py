"""SHA-256 hashes, to refuse files that changed since they were written."""

import hashlib


def check_hash(path, sha256):
    """Refuses a file that is not the one that was exported.

    Arguments
    ---------
    path : str
        The file.
    sha256 : str
        Its hash at the export, as hexadecimal digits.

    Raises
    ------
    ValueError
        If the file has another hash.
    """
    if file_hash(path) != sha256:
        raise ValueError(
            f"{path} is not the file that was exported (truncated, edited or "
            "of another export); copy the whole folder again"
        )


def file_hash(path):
    """SHA-256 of a file.

    Arguments
    ---------
    path : str
        The file.

    Returns
    -------
    str
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()
