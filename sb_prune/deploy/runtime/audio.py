"""Reads audio, and cuts what is too long to be heard at once.

Shapes: S samples, T frames, V tokens in the vocabulary.
"""

import numpy

from sb_prune.deploy.runtime.settings import DeployError

QUIET = 0.1  # seconds over which loudness is averaged to find a pause
SEARCHED = 0.25  # of a piece: where a pause is looked for


def read_audio(path, sample_rate):
    """Reads one channel of audio.

    Arguments
    ---------
    path : str
    sample_rate : int
        Samples per second that are wanted.

    Returns
    -------
    numpy.ndarray
        (S,) float32

    Raises
    ------
    DeployError
        If the file cannot be read, has no samples, or has another rate and
        `soxr` is not installed.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DeployError(f"{path} cannot be read: {error}") from error
    samples = samples.mean(axis=1)
    check_samples(samples, path)
    if rate == sample_rate:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise DeployError(
            f"{path} has {rate} samples a second, and the model hears "
            f"{sample_rate}: `pip install soxr`, or convert the file"
        ) from error
    samples = soxr.resample(samples, rate, sample_rate)
    check_samples(samples, f"{path}, at {sample_rate} samples a second,")
    return samples


def check_samples(samples, name):
    if not samples.size:
        raise DeployError(f"{name} has no samples")
    if not numpy.isfinite(samples).all():
        raise DeployError(f"{name} has samples that are no finite numbers")


def chunked(frames_of, wav, frames, margin, step):
    """Frames of an utterance, heard in chunks that overlap.

    Arguments
    ---------
    frames_of : callable
        (samples,) -> (frames, ...)
    wav : numpy.ndarray
        (S,)
    frames : int
        Of a chunk.
    margin : int
        Frames at each end of a chunk that only serve as context.
    step : int
        Samples between frames.

    Returns
    -------
    numpy.ndarray
        (T, ...)

    Example
    -------
    >>> every_third = lambda part: part[::3]
    >>> chunked(every_third, numpy.arange(30), 5, 1, step=3).tolist()
    [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    """
    parts, kept = [], frames - 2 * margin
    for first in range(0, len(wav) // step + 1, kept):
        chunk = wav[first * step : (first + frames) * step]
        found = frames_of(chunk)
        is_last = (first + frames) * step >= len(wav)
        end = len(found) if is_last else margin + kept
        parts.append(found[margin if first else 0 : end])
        if is_last:
            break
    return numpy.concatenate(parts)


def check_length(wavs, longest, rate):
    if wavs.shape[1] > longest:
        raise DeployError(
            f"wavs: {wavs.shape[1] / rate:.2f} s, and the model hears "
            f"{longest / rate:g} s at a time; write them to a file and call "
            "transcribe_file, or cut them at pauses"
        )


def cut_at_pauses(wav, longest, sample_rate):
    """Cuts an utterance into pieces, each where it is quietest near its end.

    What is left for the last two is cut near its middle, so that no piece is a
    scrap, in which a decoder invents words.

    Arguments
    ---------
    wav : numpy.ndarray
        (S,)
    longest : int
        Samples of a piece at most.
    sample_rate : int

    Returns
    -------
    list of numpy.ndarray
        Together they are the utterance.

    Example
    -------
    >>> wav = numpy.ones(3000)
    >>> wav[950] = 0
    >>> [len(p) for p in cut_at_pauses(wav, 1000, sample_rate=10)]
    [950, 1000, 525, 525]
    """
    size = min(max(round(QUIET * sample_rate), 1), longest)
    searched = max(round(SEARCHED * longest), size)
    pieces = []
    while len(wav) > longest:
        cut, end = longest, longest
        if len(wav) < 1.5 * longest:
            cut = len(wav) // 2
            end = cut + searched // 2
        first = end - searched
        power = numpy.convolve(
            wav[first:end] ** 2, numpy.ones(size), mode="valid"
        )
        if power.min() < power.max():  # there is a pause
            quietest = numpy.flatnonzero(power == power.min())[-1]
            cut = first + int(quietest) + size // 2
        pieces.append(wav[:cut])
        wav = wav[cut:]
    return [*pieces, wav]
