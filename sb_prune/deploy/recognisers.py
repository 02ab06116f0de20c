"""The kinds of speech recognisers that can be deployed, and their graphs.

A recogniser is what a `hyperparams.yaml` of SpeechBrain's inference classes
makes: `EncoderASR` with greedy CTC, `EncoderDecoderASR` with a Transformer
decoder, or `WhisperASR`; the latter two with greedy or beam search.
"""

from functools import partial

import sentencepiece
import torch
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders import (
    S2STransformerBeamSearcher,
    S2STransformerGreedySearcher,
    ctc_greedy_decode,
)
from speechbrain.decoders.seq2seq import (
    S2SWhisperBeamSearcher,
    S2SWhisperGreedySearcher,
)

from sb_prune.deploy.adapters import traceable
from sb_prune.deploy.front_end import InOrder, begin_graph
from sb_prune.deploy.graphs import write_graph
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.deploy.searches import beam_of, check_search, scorers_of
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.context import (
    FRAME,
    longest_utterance,
)

STRETCH = (2, 8)  # seconds, whose frames are counted to know how far apart


def recogniser(hparams):
    """Finds out what kind of recogniser a model is.

    Arguments
    ---------
    hparams : dict
        The loaded objects of its `hyperparams.yaml`.

    Returns
    -------
    CTC, Attention or Whisper

    Raises
    ------
    DeployError
        If it is of no kind that can be deployed.
    """
    return kind_of(hparams)(hparams)


def kind_of(hparams):
    """Finds out which of SpeechBrain's interfaces a model is made for.

    Arguments
    ---------
    hparams : dict
        The loaded objects of its `hyperparams.yaml`.

    Returns
    -------
    type
        CTC, Attention or Whisper; its `interface` is the name of a class in
        `speechbrain.inference.ASR`.

    Raises
    ------
    DeployError
        If it is made for none of them.
    """
    modules = hparams["modules"]
    for kind in (CTC, Whisper, Attention):
        if kind.modules <= modules.keys() and kind.needs <= hparams.keys():
            return kind
    raise DeployError(
        f"a model with modules {list(modules)} is none for EncoderASR "
        "(`encoder` in its modules, `decoding_function` and `tokenizer`), "
        "EncoderDecoderASR (`encoder` and `decoder` in its modules, "
        "`tokenizer`) or WhisperASR (`whisper` and `decoder` in its modules)"
    )


class Recogniser:
    """A speech recogniser that becomes graphs, and what these must compute.

    Arguments
    ---------
    hparams : dict
        The loaded objects of its `hyperparams.yaml`.

    Attributes
    ----------
    sample_rate : int
    longest : int or None
        Samples of an utterance at most.

    Raises
    ------
    DeployError
        If it is decoded or spelt in a way that graphs do not know.
    """

    interface = ""  # a class in speechbrain.inference.ASR
    modules, needs = set(), set()  # what `hparams` has where it is such a one
    longest = None

    def __init__(self, hparams):
        self.sample_rate = hparams.get("sample_rate", SAMPLE_RATE)

    def write_(self, folder, apart=False):
        """Writes graphs and tokenizer.

        Arguments
        ---------
        folder : Path
        apart : bool
            Whether features are a graph of their own.

        Returns
        -------
        dict
            Settings for the runtime.
        """
        raise NotImplementedError

    def transcribe(self, wavs, lens):
        """As SpeechBrain transcribes a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples)
        lens : torch.Tensor
            (batch,) relative lengths.

        Returns
        -------
        list of list of int
            Tokens of each utterance.
        """
        raise NotImplementedError

    def scores(self, wavs, lens):
        """What graphs are compared with.

        Arguments
        ---------
        wavs, lens : torch.Tensor
            As in `transcribe`.

        Returns
        -------
        torch.Tensor
            (batch, frames, tokens) log-probabilities of CTC, or (batch,
            tokens) logits of a decoder's first token.
        """
        raise NotImplementedError


class CTC(Recogniser):
    """Greedy CTC: one graph from waveforms to scores."""

    interface = "EncoderASR"
    modules, needs = {"encoder"}, {"decoding_function", "tokenizer"}

    def __init__(self, hparams):
        super().__init__(hparams)
        decode = hparams["decoding_function"]
        greedy = (
            isinstance(decode, partial) and decode.func is ctc_greedy_decode
        )
        if not greedy:
            raise DeployError(
                "decoding_function: only greedy CTC can be deployed; write "
                "!name:speechbrain.decoders.ctc_greedy_decode"
            )
        self.encoder = hparams["modules"]["encoder"]
        self.blank = decode.keywords.get("blank_id", -1)
        self.tokenizer = hparams["tokenizer"]
        try:
            self._traceable = traceable(self.encoder)
        except ValueError as error:
            raise DeployError(str(error)) from error
        heard = [getattr(m, "longest", None) for m in self._traceable.modules()]
        self.longest = min(filter(None, heard), default=None)  # samples

    @torch.inference_mode()
    def _samples_per_frame(self):
        """Between the scores, or None if that is no whole number."""
        lengths = [s * self.sample_rate for s in STRETCH]
        counts = [
            self.encoder(torch.zeros(1, n), torch.ones(1)).shape[1]
            for n in lengths
        ]
        distance, rest = divmod(lengths[1] - lengths[0], counts[1] - counts[0])
        return None if rest else distance

    def write_(self, folder, apart=False):
        """Writes the graph, and the tokenizer."""
        options = (self.sample_rate, folder, apart)
        encoder, inputs = begin_graph(self._traceable, *options)
        graph = InOrder(encoder)
        write_graph(graph, inputs, ["scores"], folder / "model.onnx")
        return {
            "kind": "ctc",
            "blank": self.blank,
            "longest": self.longest,
            "samples_per_frame": self._samples_per_frame(),
            **_write_tokenizer(self.tokenizer, folder),
        }

    def transcribe(self, wavs, lens):
        """As SpeechBrain transcribes a batch."""
        return ctc_greedy_decode(self.scores(wavs, lens), lens, self.blank)

    def scores(self, wavs, lens):
        """(batch, frames, tokens) log-probabilities of each frame."""
        return self.encoder(wavs, lens)


def _write_tokenizer(tokenizer, folder):
    if isinstance(tokenizer, CTCTextEncoder):
        labels = tokenizer.ind2lab
        return {"labels": [labels[n] for n in range(len(labels))]}
    if isinstance(tokenizer, sentencepiece.SentencePieceProcessor):
        proto = tokenizer.serialized_model_proto()
        (folder / "tokenizer.model").write_bytes(proto)
        return {}
    raise DeployError(
        f"tokenizer: {type(tokenizer).__name__} cannot be deployed; only "
        "SentencePieceProcessor and CTCTextEncoder can"
    )


class Attention(Recogniser):
    """Encoder and Transformer decoder of SpeechBrain: two graphs."""

    interface = "EncoderDecoderASR"
    modules, needs = {"encoder", "decoder"}, {"tokenizer"}

    def __init__(self, hparams):
        super().__init__(hparams)
        self.encoder = hparams["modules"]["encoder"]
        self.search = hparams["modules"]["decoder"]
        self.tokenizer = hparams["tokenizer"]
        for option in ("transducer_beam_search", "transformer_beam_search"):
            if hparams.get(option):
                raise DeployError(f"{option}: True cannot be deployed")
        check_search(
            self.search,
            S2STransformerGreedySearcher,
            S2STransformerBeamSearcher,
        )

    def write_(self, folder, apart=False):
        """Writes encoder and decoder step, and the tokenizer."""
        from sb_prune.deploy.attention import write_graphs

        search, beam = self.search, beam_of(self.search)
        has_ctc = beam is not None and beam["ctc"] is not None
        ctc = scorers_of(search)["ctc"].ctc_fc if has_ctc else None
        parts = (self.encoder, search.model, search.fc, ctc)
        try:
            options = (self.sample_rate, folder, apart)
            past, most = write_graphs(*parts, *options)
        except ValueError as error:
            raise DeployError(str(error)) from error
        return {
            "kind": "attention",
            "past": past,
            "has_ctc": has_ctc,
            "search": {
                "prompt": [search.bos_index],
                "end": search.eos_index,
                "ratios": [search.min_decode_ratio, search.max_decode_ratio],
                "most": most,
                "suppressed": [],
                "never_first": [],
                "beam": beam,
            },
            **_write_tokenizer(self.tokenizer, folder),
        }

    def transcribe(self, wavs, lens):
        """As SpeechBrain transcribes a batch."""
        tokens, *_ = self.search(self.encoder(wavs, lens), lens)
        return tokens

    def scores(self, wavs, lens):
        """(batch, tokens) logits of the first token."""
        states = self.encoder(wavs, lens)
        begin = torch.full((len(wavs), 1), self.search.bos_index)
        ends = torch.round(states.shape[1] * lens).int()
        decoded, _ = self.search.model.decode(begin, states, ends)
        return self.search.fc(decoded)[:, -1]


class Whisper(Recogniser):
    """Whisper: encoder and a step of the decoder."""

    interface = "WhisperASR"
    modules, needs = {"whisper", "decoder"}, set()

    def __init__(self, hparams):
        super().__init__(hparams)
        self.lobe = hparams["modules"]["whisper"]
        self.longest = longest_utterance(
            getattr(self.lobe, "context", None),
            getattr(self.lobe, "margin", 0.0),
        )
        self.search = hparams["modules"]["decoder"]
        check_search(
            self.search, S2SWhisperGreedySearcher, S2SWhisperBeamSearcher
        )
        if self.lobe.is_multilingual and self.lobe.language is None:
            raise DeployError(
                "language: a deployed model does not find out which one is "
                "spoken; write it into hyperparams.yaml"
            )
        if hparams.get("normalized_transcripts"):
            raise DeployError(
                "normalized_transcripts: True: a deployed model writes as "
                "Whisper does; write False, and normalise what it writes"
            )

    def write_(self, folder, apart=False):
        """Writes encoder and decoder step, and the tokenizer."""
        from sb_prune.deploy.whisper import write_graphs
        from sb_prune.export.tokens import TOKENIZER

        past = write_graphs(self.lobe, folder, apart)
        self.lobe.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
        return {
            "kind": "whisper",
            "language": self.lobe.language or "en",
            "heard": self._heard(),
            "samples_per_frame": FRAME,
            "past": past,
            "search": self._search(),
        }

    def _heard(self):
        lobe = self.lobe
        return {  # SpeechBrain's own lobe hears 30 s
            "context": getattr(lobe, "context", None),
            "margin": getattr(lobe, "margin", 0.0),
            "min_context": getattr(lobe, "min_context", 0.0),
        }

    def _search(self):
        search, end = self.search, self.lobe.eos
        prompt = list(search.initial_tokens)
        suppressed = []
        if search.suppress_tokens:
            suppressed = list(search.get_tokens_to_suppress)
        blank = self.lobe.tokenizer.encode(" ", add_special_tokens=False)
        beam, most = beam_of(search), search.max_attn_tokens - len(prompt)
        if beam is None:  # SpeechBrain counts the prompt twice
            most += 1 - len(prompt)
        return {
            "prompt": prompt,
            "end": end,
            "ratios": [search.min_decode_ratio, search.max_decode_ratio],
            "most": most,
            "suppressed": suppressed,
            "never_first": [*blank, end] if search.suppress_blank else [],
            "silence": {  # a token, and how much of the prompt is before it
                "token": self.lobe.no_speech,
                "after": prompt.index(self.lobe.bos) + 1,
            },
            "beam": beam,
        }

    def transcribe(self, wavs, lens):
        """As SpeechBrain transcribes a batch."""
        tokens, *_ = self.search(self._encode(wavs), lens)
        return tokens

    def scores(self, wavs, lens):
        """(batch, tokens) logits of the first token."""
        prompts = torch.tensor([self.search.initial_tokens] * len(wavs))
        logits, *_ = self.lobe.forward_decoder(self._encode(wavs), prompts)
        return logits[:, -1]

    def _encode(self, wavs):
        return self.lobe.forward_encoder(self.lobe._get_mel(wavs))
