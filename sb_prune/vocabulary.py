"""Whisper with fewer tokens: those of one language, or of one domain.

The tokens of a multilingual model are a third of Whisper-base and half of its
decoder, and one application writes few of them. Leaving out the others (Ushio
et al., "An Efficient Multilingual Language Model Compression through Vocabulary
Trimming", Findings of EMNLP 2023, 2305.15020) needs no training: the logits of
those that stay are what they were. Any text can still be written, since single
bytes stay too.

    python -m sb_prune.vocabulary openai/whisper-base FOLDER --texts english.txt

makes a Hugging Face folder with fewer rows of weights and other token ids.
"""

import argparse
import json
import re
import shutil
import unicodedata
from pathlib import Path

import torch
from speechbrain.utils.distributed import run_on_main
from transformers import (
    AutoConfig,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from sb_prune.cut.edits import ENTRY
from sb_prune.export.tokens import (
    MULTILINGUAL,
    TOKENIZER,
    is_multilingual,
    save_tokenizer,
)
from sb_prune.support.disk import reason, rename_

FIRST_SPECIAL = "<|endoftext|>"  # behind it are the others and the timestamps
CONFIG = "config.json"
OF_TEXTS = (".txt", ".csv", ".tsv")
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")  # letters, as in don't
HALF_OF_CHARACTER = "\ufffd"  # what some bytes of a character are decoded to
OF_TOKENS = (  # how keys of configurations end whose values are tokens
    "suppress_tokens",
    "_token_id",
    "_to_id",
    "_decoder_ids",
)
SHORT = 2  # ASCII characters of a piece, of which abbreviations are made
AT_ONCE = 10_000  # forms of words that are split


def trim_vocabulary(folder, source, texts):
    """Writes a Whisper that has only the tokens that some texts need.

    These are the tokens of each word as it stands, in lower case and
    capitalised, with a space before it and without, and those that differ from
    them in case alone. Special tokens, numbers, punctuation, what must not be
    generated, single bytes and pieces of up to two ASCII characters stay too.

    Arguments
    ---------
    folder : str
        Files in it are overwritten; of several processes only one writes.
    source : str
        Folder of a Whisper, or its name on the Hugging Face hub.
    texts : list of str
        Text files in UTF-8, or folders of .txt, .csv or .tsv files, with all
        words that will be said: a dictionary of the language, or all sentences
        of a small domain. A word of which the token is gone is mostly
        misspelled. Languages without spaces need sentences.

    Returns
    -------
    str
        The folder, as `source` of `sb_prune.lobes.Whisper` or of transformers.

    Raises
    ------
    ValueError
        If the source has no tokenizer of Whisper, is pruned or is itself the
        folder, or there is no text.
    """
    run_on_main(_write, [Path(folder), str(source), texts])
    return folder


def _write(folder, source, texts):
    folder = folder.resolve()  # . has no name
    if folder == Path(source).resolve():
        raise ValueError(f"folder: {folder} is the source; write another one")
    words = _read_words(texts)
    tokenizer = _load_tokenizer(source)
    if hasattr(AutoConfig.from_pretrained(source), ENTRY):
        raise ValueError(
            f"source: {source} is pruned; trim the model that it was made of, "
            "and prune that"
        )
    model = WhisperForConditionalGeneration.from_pretrained(source)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"source: {source} has a tokenizer of {len(tokenizer)} tokens and "
            f"a model of {model.config.vocab_size}"
        )
    forbidden = model.generation_config.suppress_tokens or ()
    kept = needed_tokens(tokenizer, words, forbidden)
    vocabulary = tokenizer.get_vocab()
    special = range(vocabulary[FIRST_SPECIAL], model.config.vocab_size)
    of_text = sorted({vocabulary[token] for token in kept} - {*special})
    stay = of_text + list(special)
    setattr(model.config, MULTILINGUAL, is_multilingual(model.config))
    new = trim_(model, stay)
    aside = folder.with_name(f"{folder.name}.incomplete")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    WhisperFeatureExtractor.from_pretrained(source).save_pretrained(aside)
    save_tokenizer(tokenizer, aside)
    _trim_tokenizer(aside, kept, new)
    _move(aside, folder)


def _move(aside, folder):
    """Moves files; the one without which nothing loads is there at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for file in sorted(aside.iterdir(), key=lambda file: file.name == CONFIG):
        rename_(file, folder / file.name)
    aside.rmdir()


def _load_tokenizer(source):
    why = f"no tokens before {FIRST_SPECIAL}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # by itself it is the first of what transformers makes up
        if tokenizer.get_vocab().get(FIRST_SPECIAL):
            return tokenizer
    except (OSError, ValueError) as error:
        why = reason(error)
    raise ValueError(f"source: {source} has no tokenizer of Whisper ({why})")


def needed_tokens(tokenizer, words, ids=()):
    """Finds the tokens that words need, and the pieces that these consist of.

    With the merges between them alone, the tokenizer splits these words as
    before: each merge that it makes leads to a token that stays.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerFast
        Of bytes and merges (BPE), as Whisper's.
    words : iterable of str
    ids : iterable of int
        Tokens that stay anyway.

    Returns
    -------
    set of str
        Without special tokens.
    """
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    ids, forms = set(ids), sorted(set(_forms(words)))
    for start in range(0, len(forms), AT_ONCE):
        split = backend.encode_batch(
            forms[start : start + AT_ONCE], add_special_tokens=False
        )
        ids.update(*(form.ids for form in split))
    texts = {token: backend.decoder.decode([token]) for token in model["vocab"]}
    said = {texts[t].lower() for t, i in model["vocab"].items() if i in ids}
    kept = {
        token
        for token, text in texts.items()
        if text.lower() in said or _is_basic(token, text)
    }
    parts = {}
    for one, other in model["merges"]:
        parts.setdefault(one + other, []).extend((one, other))
    todo = list(kept)
    while todo:
        new = set(parts.get(todo.pop(), ())) - kept
        kept |= new
        todo += new
    return kept


def _forms(words):
    """Words as they stand in sentences, at the start of one and within it."""
    for word in words:
        for form in (word, word.lower(), word.capitalize()):
            yield from (form, f" {form}")


def _is_basic(token, text):
    """Whether a token stays whatever is said: bytes, pieces, no letters."""
    if len(token) == 1 or text.isascii() and len(text.strip()) <= SHORT:
        return True
    return not any(
        unicodedata.category(c)[0] in "LM" or c == HALF_OF_CHARACTER
        for c in text
    )


@torch.no_grad()
def trim_(model, ids):
    """Leaves some tokens to a model, and says what their ids are now.

    Arguments
    ---------
    model : transformers.WhisperForConditionalGeneration
        Its embedding, logits, `config` and `generation_config` change.
    ids : list of int
        (K,) the tokens that stay, in their new order.

    Returns
    -------
    dict
        Old id -> new id.

    Example
    -------
    >>> from transformers import WhisperConfig
    >>> model = WhisperForConditionalGeneration(WhisperConfig(
    ...     vocab_size=100, d_model=8, encoder_layers=1, decoder_layers=1,
    ...     encoder_attention_heads=2, decoder_attention_heads=2,
    ...     pad_token_id=90, bos_token_id=90, eos_token_id=90,
    ...     decoder_start_token_id=91, suppress_tokens=[3, 5],
    ... )).eval()
    >>> heard = torch.randn(1, 80, 3000)
    >>> before = model(heard, decoder_input_ids=torch.tensor([[91, 3, 7]]))
    >>> trim_(model, [3, 7, 90, 91])
    {3: 0, 7: 1, 90: 2, 91: 3}
    >>> after = model(heard, decoder_input_ids=torch.tensor([[3, 0, 1]]))
    >>> after.logits.shape
    torch.Size([1, 3, 4])
    >>> torch.allclose(after.logits, before.logits[..., [3, 7, 90, 91]])
    True
    >>> model.config.eos_token_id, model.generation_config.suppress_tokens
    (2, [0])
    """
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    for weight in {read.weight, written.weight}:  # mostly the same one
        weight[: len(ids)] = weight[ids]
    model.resize_token_embeddings(len(ids))
    new = {old: i for i, old in enumerate(ids)}
    for config in (model.config, model.generation_config):
        for key, value in vars(config).items():
            if key.endswith(OF_TOKENS):
                setattr(config, key, _renumbered(value, new))
    return new


def _renumbered(value, new):
    """Ids with their new numbers, without those that are gone."""
    if isinstance(value, dict):
        return {k: new[i] for k, i in value.items() if i in new}
    if isinstance(value, (list, tuple)):
        pairs = all(isinstance(entry, (list, tuple)) for entry in value)
        if value and pairs:  # place in the transcript, id
            return [[place, new.get(i)] for place, i in value]
        return [new[i] for i in value if i in new]
    return new.get(value)


def _trim_tokenizer(folder, kept, new):
    """Leaves some tokens to the tokenizer in a folder."""
    path = folder / TOKENIZER
    spec = json.loads(path.read_text("utf-8"))
    model = spec["model"]
    model["vocab"] = {
        token: new[i] for token, i in model["vocab"].items() if i in new
    }
    model["merges"] = [
        (one, other)
        for one, other in model["merges"]
        if {one, other, one + other} <= kept
    ]
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    processor = spec.get("post_processor") or {}
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new[i] for i in token["ids"]]
    path.write_text(json.dumps(spec, ensure_ascii=False), "utf-8")


def _read_words(texts):
    """The words of text files, also of those in folders, as they stand."""
    if isinstance(texts, (str, Path)):
        texts = [texts]
    words = set()
    for given in map(Path, texts):
        files = [given]
        if given.is_dir():
            files = [f for f in given.rglob("*") if f.suffix in OF_TEXTS]
        for file in sorted(files):
            try:
                with open(file, encoding="utf-8-sig") as lines:
                    words.update(*map(_words_of, lines))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"texts: {file} cannot be read as text in UTF-8 "
                    f"({reason(error)})"
                ) from error
    if not words:
        raise ValueError(
            f"texts: no words in {', '.join(map(str, texts)) or 'no file'}; "
            f"name text files, or folders of {', '.join(OF_TEXTS)} files"
        )
    return words


def _words_of(line):
    """What stands between spaces, and the words in that.

    Example
    -------
    >>> sorted(_words_of("id,1.5,Don\u2019t! re-do"))
    ["Don't", 'do', 'id', "id,1.5,Don't!", 're', 're-do']
    """
    line = unicodedata.normalize("NFC", line).replace("\u2019", "'")
    return {*line.split(), *WORD.findall(line)}


def main(arguments=None):
    """Trims the vocabulary of a Whisper, and says how much is left.

    Arguments
    ---------
    arguments : list of str, optional
        Of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.vocabulary",
        description="Writes a Whisper that has only the tokens that some texts "
        "need. It loses nothing on such texts, and needs no training.",
    )
    parser.add_argument("source", help="folder of a Whisper, or its name")
    parser.add_argument("folder", help="where the smaller one goes")
    parser.add_argument(
        "--texts", nargs="+", required=True, help="text files, or folders"
    )
    given = parser.parse_args(arguments)
    try:
        trim_vocabulary(given.folder, given.source, given.texts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sizes = [
        AutoConfig.from_pretrained(f).vocab_size
        for f in (given.source, given.folder)
    ]
    print(f"{given.folder}: {sizes[1]:,} of {sizes[0]:,} tokens")


if __name__ == "__main__":
    main()
