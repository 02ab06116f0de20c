"""The synthesised SLURP: same bits, same layout and fields as the real one."""

import filecmp
import json
import random

import pytest
import soundfile

from sb_prune.demo.slurp import PATTERNS, commands, synthesise_slurp

SIZES = {"train_utterances": 12, "devel_utterances": 4, "test_utterances": 5}

# of every line of the released devel.jsonl and test.jsonl
FIELDS = (
    "slurp_id sentence sentence_annotation intent action tokens scenario "
    "recordings entities"
).split()


def lines_of(folder, split):
    path = folder / f"dataset/slurp/{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "slurp"
    synthesise_slurp(path, seed=1, **SIZES)
    return path


@pytest.fixture(scope="module")
def lines(folder):
    return [
        line
        for split in ("train", "devel", "test")
        for line in lines_of(folder, split)
    ]


def test_every_recording_is_there(folder, lines):
    listed = {r["file"] for line in lines for r in line["recordings"]}
    there = {path.name for path in (folder / "audio/slurp_real").iterdir()}
    assert listed == there and len(listed) == sum(SIZES.values())
    for name in listed:
        audio = soundfile.info(folder / "audio/slurp_real" / name)
        assert audio.samplerate == 16000
        assert 0.5 < audio.duration < 6.0


def test_fields(lines):
    for line in lines:
        assert list(line) == FIELDS
        assert list(line["tokens"][0]) == ["surface", "id", "lemma", "pos"]
        assert list(line["recordings"][0]) == [
            "file",
            "wer",
            "ent_wer",
            "status",
        ]
        assert line["intent"] == f"{line['scenario']}_{line['action']}"


def test_annotation_tokens_and_entities_agree(lines):
    """The annotation, put together again from tokens and spans."""
    for line in lines:
        words = [token["surface"] for token in line["tokens"]]
        assert line["sentence"] == " ".join(words)
        assert [t["id"] for t in line["tokens"]] == list(range(len(words)))
        for entity in line["entities"]:
            first, last = entity["span"][0], entity["span"][-1]
            words[first] = f"[{entity['type']} : {words[first]}"
            words[last] += "]"
        assert line["sentence_annotation"] == " ".join(words)
    assert sum(len(line["entities"]) for line in lines) > len(lines) / 2


def test_splits_share_no_sentence(folder):
    said = [
        {line["sentence"] for line in lines_of(folder, split)}
        for split in ("train", "devel", "test")
    ]
    assert [len(sentences) for sentences in said] == list(SIZES.values())
    assert len(set.union(*said)) == sum(SIZES.values())


def test_same_arguments_same_bits(folder, tmp_path):
    synthesise_slurp(tmp_path / "again", seed=1, **SIZES)
    names = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    assert len(names) == sum(SIZES.values()) + 4
    for name in names:
        assert filecmp.cmp(folder / name, tmp_path / "again" / name, False)


def test_sentences_are_those_of_the_seed(lines):
    drawn = commands(sum(SIZES.values()), random.Random(1))
    assert [line["sentence_annotation"] for line in lines] == [
        annotation for *_, annotation in drawn
    ]


def test_another_seed_says_something_else():
    assert commands(5, random.Random(0)) != commands(5, random.Random(1))


def test_every_intent_and_no_sentence_twice():
    drawn = commands(1350, random.Random(1234))
    assert {(scenario, action) for scenario, action, _ in drawn} == set(
        PATTERNS
    )
    assert len({annotation for *_, annotation in drawn}) == 1350
    for intent in PATTERNS:
        share = sum(command[:2] == intent for command in drawn) / 1350
        assert 0.05 < share < 0.2


def test_more_than_the_grammar_can_say():
    with pytest.raises(ValueError, match="ask for at most 7766"):
        commands(10**6, random.Random(0))


def test_the_librispeech_folder_is_refused(tmp_path):
    (tmp_path / "synthesis.json").write_text(
        '{"seed": 1, "train-clean-100": 1}'
    )
    with pytest.raises(ValueError, match="delete it or name a new folder"):
        synthesise_slurp(tmp_path, seed=1, **SIZES)
