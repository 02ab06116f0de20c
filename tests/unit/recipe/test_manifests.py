"""Manifests that SpeechBrain reads as they were meant."""

import numpy
import pytest
import soundfile

from sb_prune.recipe.audio_folders import read_folder
from sb_prune.recipe.manifests import write_once

COLUMNS = ("ID", "wav", "wrd")


def test_what_speechbrain_would_replace_is_refused(tmp_path):
    row = ["a", "$data_root/a.wav", "IT COSTS A $"]
    write_once(tmp_path, "some", {}, COLUMNS, lambda: {"some": [row]})
    for wrong in ("IT COSTS $5", "$data_roots"):
        tables = {"other": [[*row[:2], wrong]]}
        with pytest.raises(ValueError, match="a: SpeechBrain would replace"):
            write_once(tmp_path, "other", {}, COLUMNS, tables.copy)
    assert not (tmp_path / "other.csv").exists()


def test_files_with_such_names_are_left_out(tmp_path, caplog):
    for name in ("a", "for $5", "b"):
        path = tmp_path / "part" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, numpy.zeros(16000), 16000)
    found = read_folder(str(tmp_path), "part", shortest=0.5)
    assert [path for path, *_ in found] == ["part/a.wav", "part/b.wav"]
    assert "a $ in the name" in caplog.text
