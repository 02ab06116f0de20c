"""Transcribes with onnxruntime: needs neither torch nor SpeechBrain.

    pip install --no-deps .
    pip install numpy onnxruntime soundfile soxr sentencepiece tokenizers

Of `sentencepiece` and `tokenizers` a model needs one: that of its tokenizer.

Shapes: B batch, S samples, T frames, V tokens in the vocabulary.
"""

from pathlib import Path

import numpy

from sb_prune.deploy.search import ctc_greedy, greedy
from sb_prune.deploy.settings import DeployError, read_settings
from sb_prune.support.context import (
    LONGEST,
    longest_utterance,
    samples_heard,
)

CHUNK = 30.0  # seconds of a long file that are heard at a time
OVERLAP = 2.0  # seconds at each end of a chunk that only serve as context
QUIET = 0.1  # seconds over which loudness is averaged to find a pause
SEARCHED = 0.25  # of a chunk: its end, where a pause is looked for


class OnnxASR:
    """A deployed speech recogniser.

    Its methods are those of SpeechBrain's `EncoderASR` and `WhisperASR`, with
    arrays of numpy in place of tensors.

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
    sb_prune.deploy.settings.DeployError: results has no deploy.json; ...
    """

    def __init__(self, folder, threads=None):
        settings = read_settings(folder)
        self.sample_rate = settings["sample_rate"]
        made = {"ctc": _CTC, "whisper": _Whisper}[settings["kind"]]
        self.model = made(Path(folder), settings, threads)

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
            If there are no samples, or more than the model hears.
        """
        wavs = numpy.asarray(wavs, dtype=numpy.float32)
        _check_samples(wavs, "wavs")
        if wavs.ndim != 2:
            raise DeployError(
                f"wavs: has shape {wavs.shape}; write (batch, samples)"
            )
        tokens = self.model.tokens(wavs, numpy.asarray(wav_lens, "float32"))
        return [self.model.decode(row) for row in tokens], tokens


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
    _check_samples(samples, path)
    if rate == sample_rate:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise DeployError(
            f"{path} has {rate} samples a second, and the model hears "
            f"{sample_rate}: `pip install soxr`, or convert the file"
        ) from error
    return soxr.resample(samples, rate, sample_rate)


def _check_samples(samples, name):
    if not samples.size:
        raise DeployError(f"{name} has no samples")
    if not numpy.isfinite(samples).all():
        raise DeployError(f"{name} has samples that are no finite numbers")


class _Runtime:
    """What all kinds share: graphs and tokens."""

    graphs = ()  # names of the files

    def __init__(self, folder, settings, threads):
        self.settings, self.threads = settings, threads
        self.decode = _decoder(folder, settings)
        self.sessions = {}
        for name in self.graphs:
            self.load_(name, str(folder / name))

    def load_(self, name, graph):
        """Takes a graph: a path, or the bytes of its file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        self.sessions[name] = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def run(self, name, feed):
        """Outputs of a graph."""
        try:
            return self.sessions[name].run(None, feed)
        except Exception as error:  # onnxruntime has classes of its own
            raise DeployError(
                f"{name} cannot hear this; is it too short? ({error})"
            ) from error


class _CTC(_Runtime):
    """One graph: from waveforms to scores of each frame."""

    graphs = ("model.onnx",)

    @property
    def longest(self):
        """Samples of the longest utterance that it hears; None: any."""
        return self.settings["longest"]

    def scores(self, wavs, wav_lens):
        """(B, T, V) log-probabilities of each frame."""
        if self.longest is not None:
            _check_length(wavs, self.longest, self.settings["sample_rate"])
        (found,) = self.run("model.onnx", {"wavs": wavs, "lens": wav_lens})
        return found

    def scores_along(self, wavs, wav_lens, tokens):
        """(N, V) of all frames that are no padding, whatever the tokens."""
        scores = self.scores(wavs, wav_lens)
        ends = numpy.round(wav_lens * scores.shape[1]).astype(int)
        return numpy.concatenate([s[:end] for s, end in zip(scores, ends)])

    def tokens(self, wavs, wav_lens):
        """Tokens of utterances that are heard together."""
        scores = self.scores(wavs, wav_lens)
        return ctc_greedy(scores, wav_lens, self.settings["blank"])

    def long(self, wav):
        """Text of an utterance of any length, in chunks that overlap."""
        one, blank = numpy.ones(1, numpy.float32), self.settings["blank"]
        rate = self.settings["sample_rate"]
        step = self.settings["samples_per_frame"]
        size = round(CHUNK * rate)
        size = min(size, self.longest or size)
        if len(wav) <= size:
            return self.decode(self.tokens(wav[None], one)[0])
        if step is None:
            raise DeployError(
                f"this model hears {size / rate:g} s at a time, as its frames "
                "are no whole number of samples apart; cut the file at pauses"
            )
        parts = chunked(
            lambda part: self.scores(part[None], one)[0],
            wav,
            size // step,
            round(OVERLAP * rate / step),
            step,
        )
        return self.decode(ctc_greedy(parts[None], one, blank)[0])


class _Whisper(_Runtime):
    """Two graphs: the encoder, and one step of the decoder."""

    graphs = ("encoder.onnx", "decoder.onnx")

    @property
    def longest(self):
        """Samples of the longest utterance that it hears."""
        heard = self.settings["heard"]
        return longest_utterance(heard["context"], heard["margin"])

    def scores(self, wavs, wav_lens):
        """(B, V) logits of the first token."""
        return self._stepper(wavs)(self._prompts(len(wavs)))

    def scores_along(self, wavs, wav_lens, tokens):
        """(N, V) of all tokens of a text, each after those before."""
        found = []
        for wav, length, text in zip(wavs, wav_lens, tokens):
            wav = wav[None, : round(float(length) * len(wav))]
            step, new = self._stepper(wav), self._prompts(1)
            for token in [*text, self.settings["search"]["end"]]:
                found.append(step(new)[0])
                new = numpy.array([[token]])
        return numpy.stack(found)

    def tokens(self, wavs, wav_lens):
        """Tokens of utterances that are heard together."""
        search = self.settings["search"]
        frames = self._samples_heard(wavs) // self.settings["samples_per_frame"]
        return greedy(
            self._stepper(wavs),
            self._prompts(len(wavs)),
            search["end"],
            min(
                int(frames * search["ratios"][1])
                - int(frames * search["ratios"][0]),
                search["most"],
            ),
            search["suppressed"],
            search["never_first"],
        )

    def _prompts(self, batch):
        prompt = numpy.array([self.settings["search"]["prompt"]])
        return numpy.repeat(prompt, batch, axis=0)

    def _samples_heard(self, wavs):
        _check_length(wavs, self.longest, self.settings["sample_rate"])
        return samples_heard(wavs.shape[1], **self.settings["heard"])

    def _stepper(self, wavs):
        """Function: new tokens -> logits of the next; it remembers them all."""
        behind = self._samples_heard(wavs) - wavs.shape[1]
        padded = numpy.pad(wavs, ((0, 0), (0, behind)))
        read = self.run("encoder.onnx", {"wavs": padded})
        inputs = self.sessions["decoder.onnx"].get_inputs()
        names = [given.name for given in inputs]
        past = [
            numpy.zeros((len(wavs), heads, 0, dims), numpy.float32)
            for heads, dims in self.settings["past"]
            for _ in "kv"
        ]

        def step(new):
            nonlocal past
            feed = dict(zip(names, [new, *past, *read]))
            logits, *past = self.run("decoder.onnx", feed)
            return logits

        return step

    def long(self, wav):
        """Text of an utterance of any length, cut at its pauses."""
        rate, texts = self.settings["sample_rate"], []
        most = self.longest
        if len(wav) > most:  # then each piece shall have its margin
            margin = self.settings["heard"]["margin"]
            most = min(most, round((LONGEST - margin) * rate))
        for piece in cut_at_pauses(wav, most, rate):
            (tokens,) = self.tokens(piece[None], numpy.ones(1, "f4"))
            texts.append(self.decode(tokens))
        return " ".join(filter(None, texts))


def chunked(scores_of, wav, frames, margin, step):
    """Scores of an utterance, heard in chunks that overlap.

    Arguments
    ---------
    scores_of : callable
        (samples,) -> (frames, V)
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
        (T, V)

    Example
    -------
    >>> every_third = lambda part: part[::3, None]
    >>> chunked(every_third, numpy.arange(30), 5, 1, step=3)[:, 0].tolist()
    [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    """
    parts, kept = [], frames - 2 * margin
    for first in range(0, len(wav) // step + 1, kept):
        chunk = wav[first * step : (first + frames) * step]
        scores = scores_of(chunk)
        is_last = (first + frames) * step >= len(wav)
        end = len(scores) if is_last else margin + kept
        parts.append(scores[margin if first else 0 : end])
        if is_last:
            break
    return numpy.concatenate(parts)


def _check_length(wavs, longest, rate):
    if wavs.shape[1] > longest:
        raise DeployError(
            f"wavs: {wavs.shape[1] / rate:.2f} s, and the model hears "
            f"{longest / rate:g} s at a time; write them to a file and call "
            "transcribe_file, or cut them at pauses"
        )


def cut_at_pauses(wav, longest, sample_rate):
    """Cuts an utterance into pieces, each where it is quietest near its end.

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
    [950, 1000, 1000, 50]
    """
    size = min(max(round(QUIET * sample_rate), 1), longest)
    pieces = []
    while len(wav) > longest:
        searched = wav[longest - max(round(SEARCHED * longest), size) : longest]
        power = numpy.convolve(searched**2, numpy.ones(size), mode="valid")
        quietest = numpy.flatnonzero(power == power.min())[-1] + size // 2
        cut = longest - len(searched) + int(quietest)
        if power.min() == power.max():  # there is no pause
            cut = longest
        pieces.append(wav[:cut])
        wav = wav[cut:]
    return [*pieces, wav]


def _decoder(folder, settings):
    """Function: tokens -> text."""
    if "labels" in settings:
        labels = settings["labels"]
        return lambda tokens: "".join(labels[token] for token in tokens)
    if settings["kind"] == "whisper":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda tokens: tokenizer.decode(tokens).strip()
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda tokens: pieces.decode_ids(tokens)
