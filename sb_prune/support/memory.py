"""How much memory a process takes."""

from contextlib import suppress
from pathlib import Path


def forget_peak():
    """Makes the peak of this process start from what it holds now.

    Nothing happens on systems that do not know how.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_memory(field):
    """Reads a memory field of this process from Linux's /proc.

    `getrusage` would not do: its peak is inherited from the parent process.

    Arguments
    ---------
    field : str
        `VmRSS`: now; `VmHWM`: the peak.

    Returns
    -------
    int or None
        MiB; None on systems without /proc.

    Example
    -------
    >>> resident_memory("VmHWM") is None or resident_memory("VmHWM") > 1
    True
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) // 1024
