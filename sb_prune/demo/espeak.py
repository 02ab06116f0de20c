"""eSpeak NG through its C interface, from the PyPI wheel `espeakng_loader`.

The library keeps state between utterances (phases, noise, intonation) that
no call resets, so the same sentence sounds slightly different each time. What
must be reproducible goes through :func:`speak_all`, which uses a new process.
"""

import ctypes
import functools
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

# speak_lib.h: espeak_AUDIO_OUTPUT, espeak_POSITION_TYPE, espeak_PARAMETER
SYNCHRONOUS, DONT_EXIT = 2, 0x8000
AT_CHARACTER, UTF8 = 1, 1
RATE, PITCH = 1, 3

CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Speaker:
    """How a sentence is said.

    Arguments
    ---------
    voice : str
        An eSpeak NG voice, e.g. `"en-us"`, or one with a variant,
        e.g. `"en-us+f3"`.
    rate : int
        Words per minute, 80 to 450.
    pitch : int
        0 (low) to 99 (high).
    """

    voice: str = "en-us"
    rate: int = 175
    pitch: int = 50


class ESpeak:
    """The one eSpeak NG of this process; see :func:`speak`.

    Raises
    ------
    ImportError
        If `espeakng_loader` is not installed.
    RuntimeError
        If the library finds no voices.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as err:
            raise ImportError(
                "Speech synthesis needs: pip install espeakng-loader"
            ) from err
        data = espeakng_loader.get_data_path()
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self.library.espeak_Initialize(
            SYNCHRONOUS, 0, data.encode(), DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"eSpeak NG cannot read {data} (paths longer than about 150 "
                "characters are one cause): install it in a shorter path."
            )
        # Breathy variants draw from a generator seeded by the clock.
        self.library.espeak_ng_SetRandSeed(1)
        self.chunks = []
        # The library holds a bare pointer, so this reference must outlive it.
        self.callback = CALLBACK(self._receive)
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count, _events):
        """Copies one buffer, which the library reuses afterwards."""
        if samples and count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text, speaker):
        """Says one text; see :func:`speak`."""
        if self.library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice '{speaker.voice}'.")
        self.library.espeak_SetParameter(RATE, speaker.rate, 0)
        self.library.espeak_SetParameter(PITCH, speaker.pitch, 0)
        data = text.encode()
        self.chunks.clear()
        self.library.espeak_Synth(
            data, len(data) + 1, 0, AT_CHARACTER, 0, UTF8, None, None
        )
        samples = np.frombuffer(b"".join(self.chunks), dtype=np.int16)
        return samples.astype(np.float32) / 2**15, self.sample_rate


espeak = functools.cache(ESpeak)


def speak(text, speaker=Speaker()):
    """Says one text in this process.

    Arguments
    ---------
    text : str
        What to say.
    speaker : Speaker
        How to say it.

    Returns
    -------
    samples : numpy.ndarray
        float32 in [-1, 1), of shape (time,).
    sample_rate : int
        Of these samples, in Hz.

    Raises
    ------
    ValueError
        If there is no such voice.

    Example
    -------
    >>> samples, sample_rate = speak("GOOD MORNING", Speaker("en-us+f3"))
    >>> samples.ndim, sample_rate
    (1, 22050)
    """
    return espeak().speak(text, speaker)


def speak_all(texts, speakers):
    """Says texts one after the other in a new process.

    The samples depend on the arguments only, not on what was said before.

    Arguments
    ---------
    texts : list of str
        What to say.
    speakers : list of Speaker
        How to say each text.

    Yields
    ------
    samples : numpy.ndarray
        float32 in [-1, 1), of shape (time,).
    sample_rate : int
        Of these samples, in Hz.

    Raises
    ------
    RuntimeError
        If that process fails.

    Example
    -------
    >>> [(hello, sample_rate)] = speak_all(["HELLO"], [Speaker()])
    >>> hello.dtype
    dtype('float32')
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_send_all, args=(sender, texts, speakers), daemon=True
    )
    process.start()
    # Only the child may hold this end: then either side sees the other die.
    sender.close()
    try:
        for _ in texts:
            yield receiver.recv()
    except EOFError as err:
        raise RuntimeError(
            "Speech synthesis stopped; its own error is printed above."
        ) from err
    finally:
        process.terminate()
        process.join()


def _send_all(sender, texts, speakers):
    """Runs in the new process."""
    for text, speaker in zip(texts, speakers, strict=True):
        sender.send(speak(text, speaker))
