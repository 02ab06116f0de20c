"""The class that transcribes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy

from sb_prune.deploy.runtime.audio import check_samples, read_audio
from sb_prune.deploy.runtime.kinds import KINDS
from sb_prune.deploy.runtime.settings import (
    DeployError,
    check_files,
    read_settings,
)


class OnnxASR:
    """A deployed speech recogniser.

    Its methods are those of SpeechBrain's inference classes, with arrays of
    numpy in place of tensors.

    Arguments
    ---------
    folder : str
        What `python -m sb_prune.deploy` has written.
    threads : int, optional
        Of onnxruntime; by default one for each core.

    Raises
    ------
    DeployError
        If the folder is no deployed model, or a file is missing or damaged.

    Example
    -------
    >>> OnnxASR("results")
    Traceback (most recent call last):
        ...
    sb_prune.deploy.runtime.settings.DeployError: results has no ...
    """

    def __init__(self, folder, threads=None):
        settings = read_settings(folder)
        self.sample_rate = settings["sample_rate"]
        if settings["kind"] not in KINDS:
            raise DeployError(
                f"{folder}: kind {settings['kind']!r} is not one of "
                f"{', '.join(KINDS)}; deploy the model again"
            )
        kind = KINDS[settings["kind"]]
        with ThreadPoolExecutor(1) as pool:  # as hashing takes as long
            check = pool.submit(check_files, folder, settings)
            try:
                self.model = kind(Path(folder), settings, threads)
            except Exception:
                check.result()  # what is damaged is named
                raise
            check.result()

    def transcribe_file(self, path):
        """Transcribes a file, of any length.

        Arguments
        ---------
        path : str
            Any format that libsndfile reads. Channels are averaged; another
            sampling rate is converted with `soxr`.

        Returns
        -------
        str

        Raises
        ------
        DeployError
            If the file cannot be read, has no samples, or has another rate
            and `soxr` is not installed.
        """
        return self.model.long(read_audio(path, self.sample_rate))

    def transcribe_batch(self, wavs, wav_lens):
        """Transcribes utterances together, each in one piece.

        Arguments
        ---------
        wavs : numpy.ndarray
            (B, S) float, at the sampling rate of the model.
        wav_lens : numpy.ndarray
            (B,) relative lengths, 1 for the longest.

        Returns
        -------
        words : list of str
        tokens : list of list of int

        Raises
        ------
        DeployError
            If there are no samples, or more than the model hears, or if the
            lengths are not relative.
        """
        wavs = numpy.asarray(wavs, dtype=numpy.float32)
        check_samples(wavs, "wavs")
        if wavs.ndim != 2:
            raise DeployError(
                f"wavs: has shape {wavs.shape}; write (batch, samples)"
            )
        wav_lens = numpy.asarray(wav_lens, dtype=numpy.float32)
        relative = (wav_lens > 0) & (wav_lens <= 1)
        if wav_lens.shape != (len(wavs),) or not relative.all():
            raise DeployError(
                f"wav_lens: {wav_lens.tolist()}; write for each of "
                f"{len(wavs)} utterances its length as a fraction of the "
                "longest, above 0 and up to 1"
            )
        tokens = self.model.tokens(wavs, wav_lens)
        return [self.model.decode(row) for row in tokens], tokens
