"""A model in SpeechBrain, as its users load and ask it."""

import torch
from speechbrain.inference.ASR import (
    EncoderASR,
    EncoderDecoderASR,
    WhisperASR,
)

from sb_prune.declare.tables import kept_units
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.deploy.sources import load_source
from sb_prune.export.lineage import originals
from sb_prune.export.loading import encoder_of
from sb_prune.support.measure import count_macs, count_parameters, noise

COUNTED = 10  # seconds of noise whose MACs are counted
KINDS = {  # kind -> (what its YAML has, interface)
    "whisper": ({"whisper", "decoder"}, WhisperASR),
    "attention": ({"encoder", "decoder"}, EncoderDecoderASR),
    "ctc": ({"encoder", "decoding_function"}, EncoderASR),
}


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
        keys = hparams["modules"].keys() | hparams.keys()
        kinds = [kind for kind, (needs, _) in KINDS.items() if needs <= keys]
        if not kinds:
            raise DeployError(
                f"{folder} has modules {list(hparams['modules'])}; only "
                "speech recognisers can be compared: models for EncoderASR, "
                "EncoderDecoderASR and WhisperASR"
            )
        self.kind = kinds[0]
        _, interface = KINDS[self.kind]
        self.sample_rate = hparams.get("sample_rate", 16000)
        self._hparams, self._export = hparams, export
        self._asr = interface(hparams["modules"], hparams, {"device": "cpu"})

    @torch.inference_mode()
    def transcribe(self, wav):
        """Text of an utterance, (samples,)."""
        wavs = torch.from_numpy(wav)[None]
        (text,), _ = self._asr.transcribe_batch(wavs, torch.ones(1))
        return text if isinstance(text, str) else " ".join(text)

    def costs(self):
        """Parameters, MACs, and what of its units an export kept."""
        wavs = noise(COUNTED, self.sample_rate)
        macs = count_macs(encoder_of(self._hparams), wavs) / COUNTED
        units = None
        if self._export is not None:
            last = self._export.steps[-1]
            original = originals(self._export.history)[-1]
            units = kept_units(last.declaration, last.plan, original)
        return {
            "parameters": count_parameters(self._hparams["modules"].values()),
            "macs": macs,
            "units": units,
        }
