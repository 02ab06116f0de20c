"""Models that are compared: each transcribes in a process of its own.

So each has the memory to itself, and a deployed model runs without torch.
"""

from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

from sb_prune.deploy.runtime.asr import OnnxASR
from sb_prune.deploy.runtime.audio import read_audio
from sb_prune.deploy.runtime.settings import FILE
from sb_prune.support.memory import resident_memory

NO_WEIGHTS = (".png", ".md", ".json", ".txt", ".csv", ".yaml")


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
        self.kind = self._asr.model.settings["kind"]

    def transcribe(self, wav):
        """Text of an utterance, (samples,)."""
        return self._asr.model.long(wav)

    def costs(self):
        """Parameters and MACs of what was deployed."""
        source = self._asr.model.settings["source"]
        return {
            "parameters": source["parameters"],
            "macs": source["macs_per_second"],
            "units": None,
        }


def open_model(folder, threads):
    """Loads an export, another folder of SpeechBrain, or a deployed model.

    Arguments
    ---------
    folder : str
    threads : int

    Returns
    -------
    Deployed or SpeechBrain
    """
    if Path(folder, FILE).is_file():
        return Deployed(folder, threads)
    from sb_prune.report.speechbrain_model import SpeechBrain  # needs torch

    return SpeechBrain(folder, threads)


class Process:
    """A model in a process of its own.

    Arguments
    ---------
    folder : str
    threads : int

    Attributes
    ----------
    facts : dict
        runtime and kind of the model, bytes of its files, load_s.

    Raises
    ------
    DeployError
        If it cannot be loaded.
    """

    def __init__(self, folder, threads):
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            self.facts = self._ask(_open, str(folder), threads)
        except BaseException:
            self.close()
            raise

    def _ask(self, function, *given):
        return self._pool.submit(function, *given).result()

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
    start = perf_counter()
    model = open_model(folder, threads)
    seconds = perf_counter() - start
    _opened["model"] = model
    files = [p for p in Path(folder).rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files if p.suffix not in NO_WEIGHTS)
    facts = {"runtime": model.runtime, "kind": model.kind}
    return {**facts, "bytes": size, "load_s": seconds}


def _transcribe(path):
    model = _opened["model"]
    wav = read_audio(path, model.sample_rate)
    start = perf_counter()
    text = model.transcribe(wav)
    return text, perf_counter() - start


def _costs():
    return _opened["model"].costs()
