"""What stands in an export: a format number and public names only."""

import re

import pytest
from speechbrain.inference.ASR import EncoderASR
from tiny_export import make_export

import sb_prune
from sb_prune.cut.edits import FORMAT
from sb_prune.export.loading import ExportError, load_export

PUBLIC = {f"sb_prune.{name}" for name in sb_prune.__all__}


@pytest.fixture
def export(tmp_path):
    make_export(tmp_path / "export")
    return tmp_path / "export"


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_names_are_public_and_the_format_is_written(export):
    text = (export / "hyperparams.yaml").read_text(encoding="utf-8")
    names = set(re.findall(r"!(?:new|name|apply):(sb_prune[\w.]*)", text))
    assert names and names <= PUBLIC
    assert f"format: {FORMAT}" in text


def test_users_own_functions_keep_their_path():
    from sb_prune.export.yaml_nodes import named, tag_of

    assert tag_of(named(change)) == f"!name:{__name__}.change"
    own = sb_prune.conformer_structures
    assert tag_of(named(own)) == "!name:sb_prune.conformer_structures"


@pytest.mark.parametrize("found", [FORMAT + 1, 0, "two"])
def test_a_later_format_is_refused(export, tmp_path, found):
    yaml = export / "hyperparams.yaml"
    change(yaml, f"format: {FORMAT}", f"format: {found}")
    with pytest.raises(ExportError, match=f"format: {found} .* --upgrade"):
        load_export(export)
    with pytest.raises(ValueError, match=f"format: {found} .* --upgrade"):
        EncoderASR.from_hparams(source=str(export), savedir=tmp_path / "saved")
