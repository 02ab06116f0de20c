"""Tokenizers of Hugging Face lobes, such as Whisper's.

A searcher in the YAML of an export asks for the ids of special tokens when it
is made, before any file is loaded. So the YAML itself holds these ids, and the
tokenizer follows from the file `tokenizer.json`.
"""

import json
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from sb_prune.support.hashes import check_hash

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPELLING = "normalizer.json"  # British words -> American ones
SPECIAL = (  # what lobe and searchers of SpeechBrain ask for
    "<|startoftranscript|>",
    "<|endoftext|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|notimestamps|>",
    "<|0.00|>",
)
MULTILINGUAL = "is_multilingual"  # key of a config with fewer tokens
FEWEST_OF_ALL = 51865  # tokens, by which SpeechBrain knows all languages


class SpecialTokens:
    """Stands in for Whisper's tokenizer until its file is loaded.

    Arguments
    ---------
    ids : dict
        Special token -> id.
    prefix : list of int
        Tokens with which each transcript begins.

    Example
    -------
    >>> tokens = SpecialTokens({"<|startoftranscript|>": 7}, prefix=[7])
    >>> tokens.convert_tokens_to_ids(tokens.bos_token)
    7
    """

    bos_token = "<|startoftranscript|>"

    def __init__(self, ids, prefix):
        self.ids = ids
        self.prefix_tokens = prefix

    def convert_tokens_to_ids(self, token):
        """Id of a special token.

        Arguments
        ---------
        token : str

        Returns
        -------
        int
        """
        return self.ids[token]

    def set_prefix_tokens(self, **kwargs):
        """Does nothing, as the prefix is known."""


def is_multilingual(config):
    """Whether a Whisper has tokens of languages and tasks.

    Arguments
    ---------
    config : transformers.WhisperConfig

    Returns
    -------
    bool
    """
    many = config.vocab_size >= FEWEST_OF_ALL
    return getattr(config, MULTILINGUAL, many)


def never_written(tokenizer):
    """Finds tokens that no text is split into, for want of a merge.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerFast
        Of bytes and merges (BPE), as Whisper's.

    Returns
    -------
    list of str
        In the order of ids. Empty if there are no merges at all: such a
        tokenizer splits into bytes.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if not model["merges"]:
        return []
    written = {one + other for one, other in model["merges"]}
    written |= tokenizer.get_added_vocab().keys()
    return [t for t in model["vocab"] if len(t) > 1 and t not in written]


def describe_tokens(lobe):
    """The arguments of `SpecialTokens` for the tokenizer of a lobe.

    Arguments
    ---------
    lobe : torch.nn.Module
        A Hugging Face lobe.

    Returns
    -------
    dict or None
        None if the lobe has no tokenizer.
    """
    tokenizer = getattr(lobe, "tokenizer", None)
    if tokenizer is None:
        return None
    return {
        "ids": {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL},
        "prefix": list(tokenizer.prefix_tokens),
    }


def save_tokenizer(tokenizer, folder):
    """Writes a tokenizer beside the weights.

    Arguments
    ---------
    tokenizer : transformers.WhisperTokenizer
    folder : Path

    Returns
    -------
    dict
        Its settings, for `load_tokenizer`.
    """
    tokenizer.save_pretrained(folder)
    spelling = tokenizer.english_spelling_normalizer
    if spelling is not None:  # fast tokenizers do not write it
        text = json.dumps(spelling, indent=2, ensure_ascii=False)
        (folder / SPELLING).write_text(text + "\n", "utf-8")
    return json.loads((folder / SETTINGS).read_text("utf-8"))


def load_tokenizer(lobe, path, settings, sha256):
    """Loads the tokenizer of a lobe; a hook of a Pretrainer.

    Arguments
    ---------
    lobe : torch.nn.Module
        SpeechBrain's lobe Whisper, or one of `sb_prune.lobes`.
    path : str
        The file `tokenizer.json`.
    settings : dict
        Content of the file `tokenizer_config.json`.
    sha256 : str
        Hash of the file at the export, as hexadecimal digits.

    Raises
    ------
    ValueError
        If the file was truncated or edited.
    """
    check_hash(path, sha256)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder, TOKENIZER))
        Path(folder, SETTINGS).write_text(json.dumps(settings), "utf-8")
        lobe.tokenizer = AutoTokenizer.from_pretrained(folder)
    if lobe.is_multilingual:
        lobe.tokenizer.set_prefix_tokens(
            language=lobe.language or "en", task=lobe.task
        )


def load_spelling(lobe, path, sha256):
    """Loads the spellings by which the tokenizer of a lobe normalises words.

    A hook of a Pretrainer, after `load_tokenizer`.

    Arguments
    ---------
    lobe : torch.nn.Module
        SpeechBrain's lobe Whisper, or one of `sb_prune.lobes`.
    path : str
        The file `normalizer.json`.
    sha256 : str
        Hash of the file at the export, as hexadecimal digits.

    Raises
    ------
    ValueError
        If the file was truncated or edited.
    """
    check_hash(path, sha256)
    spelling = json.loads(Path(path).read_text("utf-8"))
    lobe.tokenizer.english_spelling_normalizer = spelling
