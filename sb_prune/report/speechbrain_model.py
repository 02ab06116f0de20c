"""A model in SpeechBrain, as its users load and ask it."""

from pathlib import Path

import torch
from speechbrain.inference import ASR

from sb_prune.declare.tables import kept_units
from sb_prune.deploy.recognisers import kind_of
from sb_prune.deploy.sources import cost_of, load_source
from sb_prune.export.lineage import originals
from sb_prune.export.loading import seconds_heard
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.context import LONGEST
from sb_prune.support.measure import count_parameters


class SpeechBrain:
    """An export, or another folder that SpeechBrain loads, in torch.

    Arguments
    ---------
    folder : str
    threads : int

    Raises
    ------
    DeployError
        If it cannot be loaded, or is no speech recogniser.
    """

    runtime = "SpeechBrain"

    def __init__(self, folder, threads):
        torch.set_num_threads(threads)
        hparams, export = load_source(folder)
        interface = getattr(ASR, kind_of(hparams).interface)
        self.is_whisper = interface is ASR.WhisperASR
        self.sample_rate = hparams.get("sample_rate", SAMPLE_RATE)
        self._hparams, self._export = hparams, export
        self._asr = interface(hparams["modules"], hparams, {"device": "cpu"})
        self._folder = Path(folder)

    @property
    def bytes(self):
        """Of its files; where it is no export, of its weights at least."""
        found = sum(
            path.stat().st_size
            for path in self._folder.rglob("*")
            if path.is_file() and path.suffix != ".png"
        )
        if self._export is not None:
            return found
        weights = 4 * count_parameters(self._hparams["modules"].values())
        return max(found, weights)  # which may lie elsewhere

    @property
    def longest(self):
        """Seconds of the longest utterance that it hears, or None."""
        if not self.is_whisper:
            return None
        return seconds_heard(self._hparams, LONGEST)

    @property
    def language(self):
        """In which Whisper writes; of other models None."""
        if not self.is_whisper:
            return None
        return self._hparams["modules"]["whisper"].language or "en"

    @torch.inference_mode()
    def transcribe(self, wav):
        """Text of an utterance, (samples,)."""
        wavs = torch.from_numpy(wav)[None]
        (text,), _ = self._asr.transcribe_batch(wavs, torch.ones(1))
        return text if isinstance(text, str) else " ".join(text)

    def costs(self):
        """Parameters, MACs, and what of its units an export kept."""
        cost = cost_of(self._hparams, self.sample_rate)
        units = None
        if self._export is not None:
            last = self._export.steps[-1]
            original = originals(self._export.history)[-1]
            units = kept_units(last.declaration, last.plan, original)
        return {
            "parameters": cost["parameters"],
            "macs": cost["macs_per_second"],
            "units": units,
        }
