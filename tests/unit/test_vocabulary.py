"""Whisper with fewer tokens: the model, its tokenizer and its ids."""

import json
import logging
import shutil

import pytest
import torch
from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from tiny_whisper import write_tiny_whisper
from transformers import (
    AutoTokenizer,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from sb_prune import lobes, vocabulary
from sb_prune.vocabulary import main, trim_vocabulary

MERGES = [
    *("Ġ t", "h e", "Ġt he", "c a", "ca t", "Ġ cat", "C at", "Ġ x", "x y"),
    *("Ġx y", "Ġxy z", "1 9", "19 8", "Ġ de", "d e", "d og", "o g"),
]
SPECIAL, SPECIALS = 50257, range(50257, 51865)  # also timestamps
TEXT = "the cat\nThe cat, the dog 1984\n"
OPTIONS = {"language": "en", "context": 2, "margin": 0, "min_context": 0}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    merges = [tuple(merge.split()) for merge in MERGES]
    merges = [m for m in merges if m not in {("Ġ", "de"), ("C", "at")}]
    write_tiny_whisper(folder, merges=merges)
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text())
    xyz = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("Ġxyz")
    generation |= {
        "suppress_tokens": [7, xyz],
        "begin_suppress_tokens": [220, 50257],
        "lang_to_id": {"<|en|>": 50259},
        "forced_decoder_ids": [[1, 50259], [2, 50359]],
        "max_new_tokens": 220,  # a number of them, and one of them
    }
    path.write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def trimmed(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trimmed")
    text = folder / "some.txt"
    text.write_text(TEXT)
    assert trim_vocabulary(str(folder), str(dense), [text]) == str(folder)
    return folder


@pytest.fixture(scope="module")
def new(dense, trimmed):
    """Old id -> new id, of the tokens that stay."""
    old, kept = (
        AutoTokenizer.from_pretrained(folder).get_vocab()
        for folder in (dense, trimmed)
    )
    of_text = {old[t]: i for t, i in kept.items() if old[t] < SPECIAL}
    return of_text | {i: i - SPECIAL + len(of_text) for i in SPECIALS}


def load(folder):
    return lobes.Whisper(str(folder), str(folder), **OPTIONS).eval()


def test_texts_are_split_as_before(dense, trimmed, new):
    before, after = map(AutoTokenizer.from_pretrained, (dense, trimmed))
    for text in (*TEXT.splitlines(), " the cat", "dog", "1984"):
        assert after.tokenize(text) == before.tokenize(text)
        assert after.encode(text) == [new[i] for i in before.encode(text)]


def test_any_text_can_be_written(trimmed):
    tokenizer = AutoTokenizer.from_pretrained(trimmed)
    for text in (" xyz deed", "Käse 7", "日本"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


def test_what_stays_and_what_goes(dense, trimmed):
    before, after = (
        set(AutoTokenizer.from_pretrained(folder).get_vocab())
        for folder in (dense, trimmed)
    )
    assert after < before
    bytes_and_specials = {t for t in before if len(t) == 1 or t[:2] == "<|"}
    assert bytes_and_specials <= after
    assert {"Ġthe", "cat", "Ġcat", "198", "Ġt"} <= after
    assert {"Ġxyz", "Ġxy"} <= after, "must not be generated, and its pieces"
    assert not {t for t in after if "word" in t}


@torch.no_grad()
def test_logits_of_what_stays_are_what_they_were(dense, trimmed, new):
    models = [
        WhisperForConditionalGeneration.from_pretrained(folder).eval()
        for folder in (dense, trimmed)
    ]
    heard = torch.randn(2, 80, 3000, generator=torch.manual_seed(0))
    tokenizer = AutoTokenizer.from_pretrained(dense)
    ids = torch.tensor(tokenizer(["the cat"] * 2).input_ids)
    theirs = torch.tensor([[new[int(i)] for i in row] for row in ids])
    before, after = (
        model(heard, decoder_input_ids=tokens).logits
        for model, tokens in zip(models, (ids, theirs))
    )
    old = torch.tensor(sorted(new, key=new.get))
    assert torch.allclose(after, before[..., old], atol=1e-5)
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    width, gone = before.shape[-1] - after.shape[-1], sizes[0] - sizes[1]
    assert gone == width * models[0].config.d_model > 0


def test_rows_behind_the_tokenizer_stay(dense, trimmed):
    """Timestamps, of which a tokenizer may not know."""
    counts = [
        WhisperForConditionalGeneration.from_pretrained(f).config.vocab_size
        - len(AutoTokenizer.from_pretrained(f))
        for f in (dense, trimmed)
    ]
    assert counts[0] == counts[1] > 0


@torch.no_grad()
def test_logits_of_their_own():
    """A model whose embeddings are not also those of its logits."""
    config = WhisperConfig(
        vocab_size=20,
        tie_word_embeddings=False,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 19),
        decoder_start_token_id=19,
        **{"d_model": 8, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_attention_heads": 1, "decoder_attention_heads": 1},
    )
    model = WhisperForConditionalGeneration(config).eval()
    heard = torch.randn(1, 80, 3000)
    before = model(heard, decoder_input_ids=torch.tensor([[9, 19]])).logits
    vocabulary.trim_(model, [3, 9, 19])
    after = model(heard, decoder_input_ids=torch.tensor([[1, 2]])).logits
    assert torch.allclose(after, before[..., [3, 9, 19]], atol=1e-6)


def test_ids_in_the_settings(dense, trimmed, new):
    before, after = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (dense, trimmed)
    )
    for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        assert after[key] == new[before[key]]
    assert after["suppress_tokens"] == [
        new[i] for i in before["suppress_tokens"]
    ]
    assert after["lang_to_id"] == {"<|en|>": new[50259]}
    assert after["max_new_tokens"] == before["max_new_tokens"]
    assert after["forced_decoder_ids"] == [[1, new[50259]], [2, new[50359]]]


@torch.no_grad()
def test_the_lobe_takes_it(dense, trimmed, new):
    """Prefix, special tokens, languages and the searcher of SpeechBrain."""
    before, after = load(dense), load(trimmed)
    assert after.is_multilingual
    for lobe in (before, after):
        prefix = lobe.tokenizer.prefix_tokens
        names = lobe.tokenizer.convert_ids_to_tokens(prefix)
        assert names[1:3] == ["<|en|>", "<|transcribe|>"]
    assert after.bos == new[before.bos] and after.eos == new[before.eos]
    wav = 0.1 * torch.randn(1, 16_000, generator=torch.manual_seed(1))
    written = []
    for lobe in (before, after):
        gone = sorted(set(range(SPECIAL)) - new.keys())
        suppressed = {"suppress_tokens": gone} if lobe is before else {}
        search = S2SWhisperGreedySearcher(
            lobe,
            min_decode_ratio=0.0,
            max_decode_ratio=0.15,
            **({"suppress_tokens": []} | suppressed),
        )
        encoded = lobe.forward_encoder(lobe._get_mel(wav))
        (tokens,), *_ = search(encoded, torch.ones(1))
        written.append([int(token) for token in tokens])
    assert written[1] == [new[token] for token in written[0]] and written[0]


def test_an_english_one_stays_english(tmp_path):
    write_tiny_whisper(tmp_path / "dense", english=True)
    text = tmp_path / "some.txt"
    text.write_text(TEXT)
    main([*(str(tmp_path / f) for f in ("dense", "new")), "--texts", str(text)])
    assert not load(tmp_path / "new").is_multilingual


def test_command(dense, tmp_path, capsys):
    (tmp_path / "texts/more").mkdir(parents=True)
    (tmp_path / "texts/more/some.txt").write_text(TEXT)
    folders = [str(dense), str(tmp_path / "new")]
    main([*folders, "--texts", str(tmp_path / "texts")])
    assert "of 51,865 tokens" in capsys.readouterr().out
    again = [folders[1], str(tmp_path / "again")]
    main([*again, "--texts", str(tmp_path / "texts")])
    tokens = [AutoTokenizer.from_pretrained(f).get_vocab() for f in again]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("empty.txt", b" \n", "no words in"),
        ("binary.txt", b"\xff\xfe\x00", "cannot be read as text in UTF-8"),
        ("missing.txt", None, "missing.txt cannot be read"),
    ],
)
def test_texts_that_say_nothing(dense, tmp_path, capsys, name, content, why):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit):
        main([str(dense), str(tmp_path / "new"), "--texts", str(path)])
    assert why in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text",
    [
        "u1,1.0,$data_root/a.wav,s,Cat on it",  # a row of a manifest
        '"Cat!" (it-said)',
        "\ufeffcat",  # of an editor that marks its files
        "CAT",
    ],
)
def test_words_are_found_wherever_they_stand(
    dense, tmp_path, text, monkeypatch
):
    path = tmp_path / "some.csv"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    folder = trim_vocabulary(".", str(dense), [path])
    assert {"cat", "Ġcat"} <= AutoTokenizer.from_pretrained(folder).vocab.keys()


def test_a_run_that_is_stopped_leaves_nothing(dense, tmp_path, monkeypatch):
    text = tmp_path / "some.txt"
    text.write_text(TEXT)
    with monkeypatch.context() as broken:
        broken.setattr(vocabulary, "_trim_tokenizer", None)
        with pytest.raises(TypeError):
            trim_vocabulary(str(tmp_path / "new"), str(dense), [text])
    assert not (tmp_path / "new").exists()
    trim_vocabulary(str(tmp_path / "new"), str(dense), [text])
    assert not list(tmp_path.glob("*.incomplete"))


def test_a_tokenizer_that_knows_more_than_the_model(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(dense)
    tokenizer.add_tokens([f"<{i}>" for i in range(2_000)])
    tokenizer.save_pretrained(tmp_path / "more")
    text = tmp_path / "some.txt"
    text.write_text(TEXT)
    with pytest.raises(ValueError, match="and a model of 51865"):
        trim_vocabulary(str(tmp_path / "new"), str(tmp_path / "more"), [text])


def test_sources_that_cannot_be_trimmed(dense, trimmed, tmp_path):
    text = tmp_path / "some.txt"
    text.write_text(TEXT)
    with pytest.raises(ValueError, match="is the source; write another one"):
        trim_vocabulary(str(dense), str(dense), [text])
    with pytest.raises(ValueError, match="has no tokenizer of Whisper"):
        trim_vocabulary(str(tmp_path / "new"), str(tmp_path), [text])
    for file in ("config.json", "model.safetensors"):  # no tokenizer.json
        shutil.copy(dense / file, tmp_path)
    with pytest.raises(ValueError, match="no tokens before <.endoftext.>"):
        trim_vocabulary(str(tmp_path / "new"), str(tmp_path), [text])


def test_a_lost_merge_is_told(tmp_path, caplog):
    """Such a tokenizer splits words otherwise than the model has learned."""
    folder = tmp_path / "broken"
    merges = [tuple(merge.split()) for merge in ("Ġ t", "h e", "Ġt he")]
    write_tiny_whisper(folder, merges=merges)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    del spec["model"]["merges"][0]
    path.write_text(json.dumps(spec))
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "'Ġt'" in caplog.text
