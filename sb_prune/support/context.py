"""How much of a window Whisper hears: arithmetic that needs no torch.

A lobe that trains (`sb_prune.lobes.Whisper`) and a runtime that transcribes
(`sb_prune.deploy`) must pad an utterance to the same length.
"""

from sb_prune.support.audio import SAMPLE_RATE

FRAME = 320  # samples in a frame of the encoder
LONGEST = 30.0  # seconds
UTTERANCE = "utterance"


def longest_utterance(context, margin):
    """Samples of the longest utterance that fits into a context.

    Arguments
    ---------
    context : float or "utterance" or None
        Seconds that the encoder hears; None: 30.
    margin : float
        Seconds of silence behind the utterance, if the context is a number.

    Returns
    -------
    int
    """
    if context in (None, UTTERANCE):
        return round(LONGEST * SAMPLE_RATE)
    return round((context - margin) * SAMPLE_RATE)


def frames_of_end(context, margin):
    """Frames behind an utterance that have the positions of a window's end.

    Arguments
    ---------
    context : float or "utterance" or None
        Seconds that the encoder hears; None: 30, with all positions.
    margin : float
        Seconds of silence behind the utterance.

    Returns
    -------
    int
        Those of the last quarter of the margin.
    """
    return 0 if context is None else round(margin / 4 * SAMPLE_RATE / FRAME)


def samples_heard(samples, context, margin, min_context):
    """Samples that the encoder sees of utterances of so many samples.

    Arguments
    ---------
    samples : int
        Of the longest utterance in a batch.
    context : float or "utterance" or None
        Seconds that the encoder hears; "utterance": as long as it takes; None:
        30.
    margin : float
        Seconds of silence behind the utterance.
    min_context : float
        Seconds at least, if the context is "utterance".

    Returns
    -------
    int
        A multiple of 320.

    Example
    -------
    >>> samples_heard(16000, "utterance", margin=2.0, min_context=0.0)
    48000
    """
    seconds = LONGEST if context is None else context
    if seconds == UTTERANCE:
        seconds = max(samples / SAMPLE_RATE + margin, min_context)
        seconds = min(seconds, LONGEST)
    return -(-round(seconds * SAMPLE_RATE) // FRAME) * FRAME
