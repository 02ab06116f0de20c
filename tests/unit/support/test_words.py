"""Words are told apart in any script, and counted."""

import math
import unicodedata

import pytest

from sb_prune.support import words
from sb_prune.support.words import error_rate, word_errors, words_of


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don’t, please!", ["don't", "please"]),
        ("नमस्ते, दुनिया।", ["नमस्ते", "दुनिया"]),
        ("สวัสดี ครับ", ["สวัสดี", "ครับ"]),
        ("Où est l'été?", ["où", "est", "l'été"]),
        ("‘Hello,’ 'she' said '", ["hello", "she", "said"]),
        ("a-b_c 1.5", ["a", "b_c", "1", "5"]),
        ("...", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == [unicodedata.normalize("NFKC", w) for w in words]
    apart = unicodedata.normalize("NFD", text)
    assert words_of(apart) == words_of(text)


def test_another_vowel_is_an_error():
    assert word_errors(words_of("दुनिया"), words_of("दूनिया")) == (1, 1)


def test_rates_of_few_utterances_have_bounds():
    """Some draws have no word; they say nothing."""
    rate, low, high = error_rate([(0, 10), (2, 0)])
    assert rate == 20 and low <= rate <= high < math.inf


def test_many_utterances_are_drawn_block_by_block(monkeypatch):
    counts = [(n % 4, 10) for n in range(50)]
    whole = error_rate(counts)
    monkeypatch.setattr(words, "BLOCK", 50 * 7)
    assert error_rate(counts) == whole
