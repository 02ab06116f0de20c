"""The kinds of deployed models: graphs, and how they are searched.

Shapes: B batch, S samples, T frames, V tokens in the vocabulary, N hypotheses
of a whole batch.
"""

import re

import numpy

from sb_prune.deploy.runtime.audio import (
    check_length,
    chunked,
    cut_at_pauses,
)
from sb_prune.deploy.runtime.beam import PrefixScores, beam_search
from sb_prune.deploy.runtime.search import (
    ctc_collapse,
    ctc_greedy,
    greedy,
    log_softmax,
    without,
)
from sb_prune.deploy.runtime.settings import FEATURES, DeployError
from sb_prune.support.context import (
    LONGEST,
    longest_utterance,
    samples_heard,
)

CHUNK = 30.0  # seconds of a long file that are heard at a time
OVERLAP = 2.0  # seconds at each end of a chunk that only serve as context
NOTHING = -1  # in place of the blank
NO_SPEECH = 0.6  # probability above which a piece of Whisper's may be silent,
UNSURE = -1.0  # if its tokens have less than this log-probability on average
TIMES = re.compile(r"<\|\d+\.\d+\|>")  # of Whisper, which are no words


class Kind:
    """What all kinds share: graphs and tokens."""

    graphs = ()  # names of the files

    def __init__(self, folder, settings, threads):
        self.settings, self.threads = settings, threads
        self.decode = _text_of(folder, settings)
        self.sessions = {}
        apart = [FEATURES] * (FEATURES in settings["files"])
        for name in (*apart, *self.graphs):
            self.load_(name, str(folder / name))

    def load_(self, name, graph):
        """Takes a graph: a path, or the bytes of its file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, too
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        self.sessions[name] = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def hear(self, name, feed):
        """Outputs of the graph that hears, or reads what another one heard."""
        if FEATURES in self.sessions:
            (features,) = self.run(FEATURES, feed)
            feed = {**feed, "features": features}
        return self.run(name, feed)

    def run(self, name, feed):
        """Outputs of a graph, which takes what it needs of a feed."""
        session = self.sessions[name]
        needed = {i.name: feed[i.name] for i in session.get_inputs()}
        try:
            return session.run(None, needed)
        except Exception as error:  # onnxruntime has classes of its own
            raise DeployError(
                f"{name} cannot hear this; is it too short, or too long for "
                f"the memory or the model? ({error})"
            ) from error


class CTC(Kind):
    """One graph: from waveforms to scores of each frame."""

    graphs = ("model.onnx",)

    @property
    def longest(self):
        """Samples of the longest utterance that it hears; None: any."""
        return self.settings["longest"]

    def scores(self, wavs, wav_lens):
        """(B, T, V) log-probabilities of each frame."""
        if self.longest is not None:
            check_length(wavs, self.longest, self.settings["sample_rate"])
        (found,) = self.hear("model.onnx", {"wavs": wavs, "lens": wav_lens})
        return found

    def scores_along(self, wavs, wav_lens, tokens):
        """[(N, V)] of all frames that are no padding, whatever the tokens."""
        scores = self.scores(wavs, wav_lens)
        ends = numpy.round(wav_lens * scores.shape[1]).astype(int)
        return [numpy.concatenate([s[:end] for s, end in zip(scores, ends)])]

    def tokens(self, wavs, wav_lens):
        """Tokens of utterances that are heard together."""
        scores = self.scores(wavs, wav_lens)
        return ctc_greedy(scores, wav_lens, self.settings["blank"])

    def long(self, wav):
        """Text of an utterance of any length, in chunks that overlap."""
        one, rate = numpy.ones(1, numpy.float32), self.settings["sample_rate"]
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
        tokens = chunked(
            lambda part: self._best(part[None], one)[0],
            wav,
            size // step,
            min(round(OVERLAP * rate / step), size // step // 4),
            step,
        )
        return self.decode(ctc_collapse(tokens, NOTHING))

    def _best(self, wavs, wav_lens):
        """(B, T) the most probable token of each frame; `NOTHING` is blank."""
        scores = self.scores(wavs, wav_lens)
        best = scores.argmax(-1)
        best[best == self.settings["blank"] % scores.shape[-1]] = NOTHING
        return best


class Steps:
    """Steps of a decoder over a batch. It remembers the tokens before.

    Arguments
    ---------
    run : callable
        Feed (name -> array) -> logits and what is kept.
    feed : dict
        What every step reads.
    past : list of numpy.ndarray
        Keys and values of the layers, before any token.
    """

    def __init__(self, run, feed, past):
        self._run, self._feed, self._past = run, feed, past
        self._before = 0

    def __call__(self, new):
        """(N, V) logits of the token after new ones, (N, L)."""
        past = {f"past_{n}": kept for n, kept in enumerate(self._past)}
        place = numpy.array([self._before])
        feed = {**self._feed, **past, "tokens": new, "place": place}
        logits, *self._past = self._run(feed)
        self._before += new.shape[1]
        return logits

    def peek(self, new):
        """(N, V) logits of the token after new ones, which are forgotten."""
        before, past = self._before, self._past
        logits = self(new)
        self._before, self._past = before, past
        return logits

    def keep(self, index):
        """Goes on with some hypotheses, (N,) int."""
        self._past = [kept[index] for kept in self._past]


class EncoderDecoder(Kind):
    """Two graphs: the encoder, and one step of the decoder."""

    graphs = ("encoder.onnx", "decoder.onnx")

    def begin(self, wavs, wav_lens, copies=1):
        """Encodes a batch.

        Arguments
        ---------
        wavs : numpy.ndarray
            (B, S)
        wav_lens : numpy.ndarray
            (B,)
        copies : int
            Hypotheses of each utterance, which follow each other.

        Returns
        -------
        steps : Steps
        ends : numpy.ndarray
            (B,) int, frames of each utterance.
        frames : int
            Of the longest.
        ctc : numpy.ndarray or None
            (B, T, V) log-probabilities, if the search needs them.
        """
        raise NotImplementedError

    def log_probabilities(self, logits, temperature):
        """(N, V) log-probabilities, as the search of SpeechBrain has them."""
        raise NotImplementedError

    def pieces(self, wav):
        """Parts of an utterance, each as long as it can be heard at a time."""
        raise NotImplementedError

    def scores(self, wavs, wav_lens):
        """(B, V) logits of the first token."""
        steps, *_ = self.begin(wavs, wav_lens)
        return steps(self._prompts(len(wavs)))

    def scores_along(self, wavs, wav_lens, tokens):
        """[(N, V)] of all tokens of a text, each after those before.

        With CTC, and (T, V) of all frames.
        """
        found, heard, one = [], [], numpy.ones(1, numpy.float32)
        for wav, length, text in zip(wavs, wav_lens, tokens):
            wav = wav[None, : round(float(length) * len(wav))]
            steps, *_, ctc = self.begin(wav, one)
            new = self._prompts(1)
            for token in [*text, self.settings["search"]["end"]]:
                found.append(steps(new))
                new = numpy.array([[token]])
            if ctc is not None:
                heard += list(ctc)
        return [numpy.concatenate(each) for each in (found, heard) if each]

    def tokens(self, wavs, wav_lens):
        """Tokens of utterances that are heard together."""
        return self._searched(*self.begin(wavs, wav_lens, self.copies))

    def _searched(self, steps, ends, frames, ctc):
        """Tokens that a search finds in what `begin` returned."""
        search, copies = self.settings["search"], self.copies
        beam, end = search["beam"], search["end"]
        prompts = numpy.repeat(self._prompts(len(ends)), copies, axis=0)
        step = without(steps, search["suppressed"], search["never_first"])
        least, most = (int(frames * ratio) for ratio in search["ratios"])
        if not beam:
            most = min(most - least, search["most"])
            return greedy(step, prompts, end, most)
        joint = beam["ctc"] and PrefixScores(
            ctc, ends, copies, end=end, **beam["ctc"]
        )
        return beam_search(
            lambda new: self.log_probabilities(step(new), beam["temperature"]),
            steps.keep,
            prompts,
            copies,
            end,
            least,
            min(most, search["most"]),
            beam["by_length"],
            beam["threshold"],
            joint,
        )

    def long(self, wav):
        """Text of an utterance of any length, cut at its pauses."""
        one, texts = numpy.ones(1, numpy.float32), []
        pieces = self.pieces(wav)
        for piece in pieces:
            steps, *begun = self.begin(piece[None], one, self.copies)
            is_doubtful = len(pieces) > 1 and self.may_be_silent(steps)
            (tokens,) = self._searched(steps, *begun)
            if not (is_doubtful and self.sureness(piece, tokens) <= UNSURE):
                texts.append(self.decode(tokens))
        return " ".join(filter(None, texts))

    def may_be_silent(self, steps):
        """Whether a decoder would say so of what it is about to transcribe."""
        return False

    def sureness(self, wav, tokens):
        """Mean log-probability of a text, whose end counts 0.

        As the scores of SpeechBrain's greedy search have it.
        """
        one, search = numpy.ones(1, numpy.float32), self.settings["search"]
        (logits, *_) = self.scores_along(wav[None], one, [tokens])
        logits[:, search["suppressed"]] = -numpy.inf
        logits[0, search["never_first"]] = -numpy.inf
        places = numpy.arange(len(tokens)), tokens
        return log_softmax(logits)[places].sum() / len(logits)

    @property
    def copies(self):
        """Hypotheses of each utterance."""
        beam = self.settings["search"]["beam"]
        return beam["size"] if beam else 1

    def _prompts(self, batch):
        prompt = numpy.array([self.settings["search"]["prompt"]])
        return numpy.repeat(prompt, batch, axis=0)


class Whisper(EncoderDecoder):
    """Hears an utterance in a context of up to 30 s."""

    @property
    def language(self):
        """In which it writes."""
        return self.settings.get("language", "en")

    @property
    def longest(self):
        """Samples of the longest utterance that it hears."""
        heard = self.settings["heard"]
        return longest_utterance(heard["context"], heard["margin"])

    def begin(self, wavs, wav_lens, copies=1):
        """Encodes a batch, in which all are as long as the longest."""
        check_length(wavs, self.longest, self.settings["sample_rate"])
        heard = samples_heard(wavs.shape[1], **self.settings["heard"])
        behind = heard - wavs.shape[1]
        padded = numpy.pad(wavs, ((0, 0), (0, behind)))
        read = self.hear("encoder.onnx", {"wavs": padded})
        read = [numpy.repeat(found, copies, axis=0) for found in read]
        past = [
            numpy.zeros((len(wavs) * copies, heads, 0, dims), numpy.float32)
            for heads, dims in self.settings["past"]
            for _ in "kv"
        ]
        feed = {f"read_{n}": found for n, found in enumerate(read)}
        steps = Steps(lambda feed: self.run("decoder.onnx", feed), feed, past)
        frames = heard // self.settings["samples_per_frame"]
        return steps, numpy.full(len(wavs), frames), frames, None

    def log_probabilities(self, logits, temperature):
        """(N, V) log-probabilities; the temperature divides these."""
        return log_softmax(logits) / temperature

    def may_be_silent(self, steps):
        """Whether it says so in place of a language, as in OpenAI's code.

        Of several pieces, those of which it is unsure, too, are left out: it
        invents words for silence.
        """
        silence = self.settings["search"].get("silence")
        if silence is None:  # a folder of an earlier version
            return False
        begin = self._prompts(self.copies)[:, : silence["after"]]
        silent = log_softmax(steps.peek(begin))[0, silence["token"]]
        return numpy.exp(silent) > NO_SPEECH

    def pieces(self, wav):
        """Parts that are heard with their margin, if they are several."""
        rate, most = self.settings["sample_rate"], self.longest
        if len(wav) > most:
            margin = self.settings["heard"]["margin"]
            most = min(most, round((LONGEST - margin) * rate))
        return cut_at_pauses(wav, most, rate)


class Attention(EncoderDecoder):
    """An encoder of SpeechBrain, and a step of its Transformer decoder."""

    longest = None  # samples of an utterance: any

    def begin(self, wavs, wav_lens, copies=1):
        """Encodes a batch. Hypotheses of an utterance share what they read."""
        found = self.hear("encoder.onnx", {"wavs": wavs, "lens": wav_lens})
        has_ctc = self.settings["has_ctc"]
        ctc, read = (found[-1], found[:-1]) if has_ctc else (None, found)
        frames = found[0].shape[1]
        ends = numpy.round(frames * wav_lens).astype(numpy.int64)
        past = [
            numpy.zeros((len(wavs) * copies, 0, width), numpy.float32)
            for width in self.settings["past"]
        ]
        feed = {f"read_{n}": found for n, found in enumerate(read)}
        feed["frames"] = ends
        steps = Steps(lambda feed: self.run("decoder.onnx", feed), feed, past)
        return steps, ends, frames, ctc

    def log_probabilities(self, logits, temperature):
        """(N, V) log-probabilities; the temperature divides the logits."""
        return log_softmax(logits / temperature)

    def pieces(self, wav):
        """Parts of a length that models are trained with."""
        rate = self.settings["sample_rate"]
        return cut_at_pauses(wav, round(CHUNK * rate), rate)


KINDS = {"ctc": CTC, "whisper": Whisper, "attention": Attention}


def _text_of(folder, settings):
    """Function: tokens -> text."""
    if "labels" in settings:
        labels = settings["labels"]
        return lambda tokens: "".join(labels[token] for token in tokens)
    if settings["kind"] == "whisper":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda tokens: TIMES.sub("", tokenizer.decode(tokens)).strip()
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda tokens: pieces.decode_ids(tokens)
