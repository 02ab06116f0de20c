"""Models that are compared: each transcribes in a process of its own.

So the memory of each is known, and a deployed model runs without torch.
"""

import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from time import perf_counter

from sb_prune.deploy.runtime.asr import OnnxASR
from sb_prune.deploy.runtime.audio import read_audio
from sb_prune.deploy.runtime.settings import FILE, DeployError
from sb_prune.support.memory import resident_memory


class Deployed:
    """What `python -m sb_prune.deploy` has written, in onnxruntime.

    Arguments
    ---------
    folder : str
    threads : int
    """

    runtime = "onnxruntime"

    def __init__(self, folder, threads):
        self._asr = OnnxASR(folder, threads)
        self.sample_rate = self._asr.sample_rate
        self._settings = self._asr.model.settings
        self.language = getattr(self._asr.model, "language", None)
        self._folder = Path(folder)

    @property
    def bytes(self):
        """Of its files."""
        files = map(self._folder.joinpath, self._settings["files"])
        return sum(file.stat().st_size for file in files)

    @property
    def longest(self):
        """Seconds of the longest utterance that it hears at once, or None."""
        samples = self._asr.model.longest
        return samples and samples / self.sample_rate

    def transcribe(self, wav):
        """Text of an utterance, (samples,)."""
        return self._asr.model.long(wav)

    def costs(self):
        """Parameters and MACs of what was deployed."""
        source = self._settings["source"]
        return {
            "parameters": source["parameters"],
            "macs": source["macs_per_second"],
            "units": None,
        }


def kind_of_model(folder):
    """The class for an export, another folder of SpeechBrain, or a deployed.

    Importing it imports what the model runs in.

    Arguments
    ---------
    folder : str

    Returns
    -------
    type
        Deployed or SpeechBrain
    """
    if Path(folder, FILE).is_file():
        import onnxruntime  # noqa: F401

        return Deployed
    from sb_prune.report.speechbrain_model import SpeechBrain  # needs torch

    return SpeechBrain


class Process:
    """A model in a process of its own.

    Arguments
    ---------
    folder : str
    threads : int

    Attributes
    ----------
    facts : dict
        runtime; language: in which Whisper writes, else None; longest: seconds
        that it hears at a time, or None; bytes of its files; load_s: without
        what starts its libraries.

    Raises
    ------
    DeployError
        If it cannot be loaded.
    """

    def __init__(self, folder, threads):
        self._folder = str(folder)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            self.facts = self._ask(_open, self._folder, threads)
        except BaseException:
            self.close()
            raise

    def _ask(self, function, *given):
        try:
            return self._pool.submit(function, *given).result()
        except BrokenProcessPool as error:
            raise DeployError(
                f"{self._folder}: its process was killed; is there memory for "
                "all models at once?"
            ) from error
        except (DeployError, ModuleNotFoundError):
            raise
        except Exception as error:  # whatever a model raises
            raise DeployError(f"{self._folder}: {error}") from error

    def transcribe(self, path):
        """Transcribes a file.

        Arguments
        ---------
        path : str

        Returns
        -------
        (str, float)
            Text, and seconds without those of reading.
        """
        return self._ask(_transcribe, str(path))

    def memory(self):
        """Peak resident memory in MiB, or None where Linux's /proc is not."""
        return self._ask(resident_memory, "VmHWM")

    def costs(self):
        """Counts parameters and MACs, which takes memory.

        Returns
        -------
        dict
            parameters; macs of the encoder, for each second of audio; and
            units of an export (see `kept_units`), else None.
        """
        return self._ask(_costs)

    def close(self):
        """Ends the process."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def processes(folders, threads):
    """Context with a process for each model.

    Arguments
    ---------
    folders : dict
        Name -> folder.
    threads : int

    Yields
    ------
    dict
        Name -> Process.
    """
    found = {}
    try:
        for name, folder in folders.items():
            found[name] = Process(folder, threads)
        yield found
    finally:
        for process in found.values():
            process.close()


_opened = {}  # of this process: what is asked next needs what was opened


def _open(folder, threads):
    Thread(target=_end_with_parent, daemon=True).start()
    kind = kind_of_model(folder)
    kind(folder, threads)  # once, as its YAML imports what it needs
    gc.collect()
    start = perf_counter()
    model = kind(folder, threads)
    seconds = perf_counter() - start
    _opened["model"] = model
    return {
        "runtime": model.runtime,
        "language": model.language,
        "longest": model.longest,
        "bytes": model.bytes,
        "load_s": seconds,
    }


def _end_with_parent():
    """Without it, models would stay when the parent is killed."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _transcribe(path):
    model = _opened["model"]
    wav = read_audio(path, model.sample_rate)
    start = perf_counter()
    text = model.transcribe(wav)
    return text, perf_counter() - start


def _costs():
    return _opened["model"].costs()
