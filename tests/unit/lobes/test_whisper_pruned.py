"""A small Whisper, pruned: exported, loaded as SpeechBrain and others do."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from rounding import assert_same_but_for_rounding
from speechbrain.decoders.seq2seq import (
    S2SWhisperBeamSearcher,
    S2SWhisperGreedySearcher,
)
from speechbrain.inference.ASR import WhisperASR
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from tiny_whisper import write_tiny_whisper

from sb_prune import lobes, mac_cost, pruned, whisper_structures
from sb_prune.depth import EvenlySpaced
from sb_prune.export.loading import ExportError, load_export
from sb_prune.report.command import write_report
from sb_prune.vocabulary import trim_vocabulary

ROOT = Path(__file__).parents[3]
INFERENCE = (
    ROOT / "recipes/LibriSpeech/ASR/transformer/hparams/inference_whisper.yaml"
)
OPTIONS = {"language": "en", "context": 2, "margin": 0, "min_context": 0}
SIDES = {"model.encoder": 0.1, "model.decoder": 0.005}


class Recipe(sb.Brain):
    """Cross-entropy of letters."""

    def compute_forward(self, batch, stage):
        return self.modules.whisper(batch["wav"], batch["tokens"][:, :-1])[1]

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(
            predictions.mT, batch["tokens"][:, 1:]
        )


def data(tokenizer):
    generator = torch.Generator().manual_seed(1)
    prefix = tokenizer.prefix_tokens
    letters = torch.randint(60, 80, (4, 2, 5), generator=generator)
    return [
        {
            "wav": 0.1 * torch.randn(2, 16_000, generator=generator),
            "tokens": torch.cat(
                [torch.tensor([prefix] * 2), letters[i]], dim=1
            ),
        }
        for i in range(4)
    ]


def prune(folder, source, layers=None, **block):
    """Prunes a folder; returns the Brain, its export is in `export`.

    `layers` are keys of a `layer_pruning` block, which takes its place.
    """
    torch.manual_seed(0)
    whisper = lobes.Whisper(str(source), str(source), **OPTIONS)
    counter = EpochCounter(2)
    every = {
        "module": "whisper",
        "structures": whisper_structures,
        "inference": str(INFERENCE),
        "export_folder": str(folder / "export"),
    }
    blocks = {"layer_pruning": {**every, **(layers or {})}}
    if layers is None:
        gates = {"prune_epochs": 1, "schedule_steps": 3, "target": 0.02}
        blocks = {"pruning": {**every, **gates, **block}}
    brain = pruned(Recipe)(
        modules={"whisper": whisper},
        opt_class=partial(torch.optim.Adam, lr=0.001),
        hparams={
            "whisper": whisper,
            "whisper_hub": str(source),
            **OPTIONS,
            **blocks,
        },
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=Checkpointer(
            folder / "save", {"whisper": whisper, "counter": counter}
        ),
    )
    loader = {"batch_size": None}
    batches = data(whisper.tokenizer)
    brain.fit(counter, batches, train_loader_kwargs=loader)
    brain.evaluate(batches, test_loader_kwargs=loader)
    brain.modules.eval()
    return brain


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    write_tiny_whisper(folder, d_model=32)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, source):
    """The folder of an export, and the Brain that made it."""
    folder = tmp_path_factory.mktemp("pruned")
    brain = prune(folder, source, structures=NARROW, target=0.1)
    return folder / "export", brain


NARROW = partial(
    whisper_structures, sides=["encoder"], kinds=["heads", "ffn_units"]
)


@torch.no_grad()
def speak(lobe):
    batch = data(lobe.tokenizer)[0]
    return lobe.eval()(batch["wav"], batch["tokens"])[1]


def test_export_is_what_was_evaluated(small, tmp_path):
    export, brain = small
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    ours = speak(brain.modules.whisper)
    loaded = load_export(export).hparams["whisper"]
    assert_same_but_for_rounding(speak(loaded), ours)
    swapped = lobes.Whisper(str(export), str(tmp_path), **OPTIONS)
    assert_same_but_for_rounding(speak(swapped), ours)


def test_it_transcribes_as_before(small, tmp_path):
    """SpeechBrain's interface, with its tokenizer and both searchers."""
    export, brain = small
    ours = brain.modules.whisper
    model = WhisperASR.from_hparams(source=str(export), savedir=str(tmp_path))
    theirs = model.mods.whisper
    assert type(theirs.tokenizer) is type(ours.tokenizer)
    assert theirs.tokenizer.prefix_tokens == ours.tokenizer.prefix_tokens
    assert theirs.tokenizer.encode("a b") == ours.tokenizer.encode("a b")
    wav = data(ours.tokenizer)[0]["wav"]
    words, tokens = model.transcribe_batch(wav, torch.ones(2))
    ratios = {"min_decode_ratio": 0.0, "max_decode_ratio": 0.15}
    search = S2SWhisperGreedySearcher(model=ours, **ratios)
    with torch.no_grad():
        encoded = ours.forward_encoder(ours._get_mel(wav))
        expected, *_ = search(encoded, torch.ones(2))
    assert [list(t) for t in tokens] == [list(t) for t in expected]


def test_a_trimmed_vocabulary_is_exported(source, tmp_path):
    """Languages are known by the config then, not by how many tokens."""
    words = tmp_path / "words.txt"
    words.write_text("some words")
    trimmed = trim_vocabulary(str(tmp_path / "few"), str(source), [words])
    brain = prune(tmp_path, trimmed, structures=NARROW, target=0.1)
    ours = brain.modules.whisper
    assert ours.model.config.vocab_size < ours.eos + 2_000 < 10_000
    export = str(tmp_path / "export")
    model = WhisperASR.from_hparams(source=export, savedir=str(tmp_path / "s"))
    swapped = lobes.Whisper(export, str(tmp_path), **OPTIONS)
    for lobe in (model.mods.whisper, swapped):
        assert lobe.is_multilingual and lobe.bos == ours.bos
        assert lobe.tokenizer.prefix_tokens == ours.tokenizer.prefix_tokens
        assert_same_but_for_rounding(speak(lobe), speak(ours))
    with pytest.raises(ValueError, match="is pruned; trim the model that it"):
        trim_vocabulary(str(tmp_path / "fewer"), export, [words])


def test_words_are_normalised_as_before(small, tmp_path):
    """SpeechBrain's option normalized_transcripts reads normalizer.json."""
    export, brain = small
    model = WhisperASR.from_hparams(source=str(export), savedir=str(tmp_path))
    swapped = lobes.Whisper(str(export), str(tmp_path), **OPTIONS)
    for lobe in (brain.modules.whisper, model.mods.whisper, swapped):
        assert lobe.tokenizer.normalize("My colour, dear!") == "my color dear"


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("tokenizer.json", "<|translate|>", "<|trans|>"),
        ("normalizer.json", "color", "colar"),
        ("generation_config.json", "24", "25"),
    ],
)
def test_an_edited_tokenizer_is_named(small, tmp_path, name, old, new):
    export = tmp_path / "export"
    shutil.copytree(small[0], export)
    file = export / name
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ExportError, match=f"{file} is not the file that was"):
        load_export(export)


@torch.no_grad()
def test_beams(small, tmp_path):
    export, brain = small
    found = []
    for lobe in (
        brain.modules.whisper,
        lobes.Whisper(str(export), str(tmp_path), **OPTIONS).eval(),
    ):
        search = S2SWhisperBeamSearcher(
            module=[lobe],
            min_decode_ratio=0.0,
            max_decode_ratio=0.1,
            beam_size=3,
        )
        wav = data(lobe.tokenizer)[0]["wav"]
        hyps, _, scores, _ = search(
            lobe.forward_encoder(lobe._get_mel(wav)), torch.ones(2)
        )
        found.append((hyps, scores))
    assert found[0][0] == found[1][0]
    assert_same_but_for_rounding(found[0][1], found[1][1])


@torch.no_grad()
def test_generate_of_an_export(small, source, tmp_path):
    export, brain = small
    config = json.loads((export / "generation_config.json").read_text())
    assert config["max_length"] == 24  # as in the source
    lobe = lobes.Whisper(str(export), str(tmp_path), **OPTIONS).eval()
    loaded = load_export(export).hparams["whisper"]
    mel = lobe._get_mel(data(lobe.tokenizer)[0]["wav"])
    models = [
        one.for_generation() for one in (lobe, loaded, brain.modules.whisper)
    ]
    assert {model.generation_config.max_length for model in models} == {24}
    found = [model.generate(mel, max_length=8) for model in models]
    assert all(torch.equal(tokens, found[0]) for tokens in found)


def test_encoder_and_decoder(source, tmp_path):
    """All kinds on both sides, one budget each."""

    brain = prune(
        tmp_path,
        source,
        target=SIDES,
    )
    assert brain.pruning.facts["cut_max_abs_diff"] <= 1e-5
    ours = speak(brain.modules.whisper)
    export = load_export(tmp_path / "export")
    assert_same_but_for_rounding(speak(export.hparams["whisper"]), ours)
    cut = {name.split(".")[1] for name in export.steps[-1].plan.keep}
    assert cut == {"encoder", "decoder"}


@torch.no_grad()
def test_the_encoder_of_an_export_alone(small, tmp_path):
    export, brain = small
    alone = lobes.Whisper(
        str(export), str(tmp_path), encoder_only=True, context=2, margin=0
    ).eval()
    assert alone.model.decoder is None
    wav = data(brain.modules.whisper.tokenizer)[0]["wav"]
    ours = brain.modules.whisper
    assert torch.equal(alone(wav), ours.forward_encoder(ours._get_mel(wav)))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_frozen_side_is_refused(source, tmp_path, monkeypatch, side):
    frozen = {**OPTIONS, f"freeze_{side}": True}
    monkeypatch.setattr(f"{__name__}.OPTIONS", frozen)
    structures = partial(whisper_structures, sides=[side])
    with pytest.raises(ValueError, match=f"is frozen, so .*freeze_{side}"):
        prune(tmp_path, source, structures=structures, target=0.01)


def test_a_frozen_decoder_stays(source, tmp_path, monkeypatch):
    frozen = {**OPTIONS, "freeze_decoder": True}
    monkeypatch.setattr(f"{__name__}.OPTIONS", frozen)
    dense = lobes.Whisper(str(source), str(source), **OPTIONS).model
    model = prune(tmp_path, source, structures=NARROW).modules.whisper.model
    for ours, before, same in (
        (model.decoder, dense.decoder, True),
        (model.encoder.conv2, dense.encoder.conv2, False),
    ):
        before = dict(before.named_parameters())
        found = [torch.equal(p, before[n]) for n, p in ours.named_parameters()]
        assert all(found) == same


def test_a_missing_tokenizer_is_named(source, tmp_path):
    for file in source.iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="source: .* has no tokenizer of Whis"):
        lobes.Whisper(str(tmp_path), str(tmp_path))
    lobes.Whisper(str(tmp_path), str(tmp_path), encoder_only=True)


def test_a_decoder_of_fewer_layers(source, tmp_path):
    """As Distil-Whisper's, which starts with layers of the dense model."""
    decoder = partial(whisper_structures, sides=["decoder"])
    layers = {"structures": decoder, "criterion": EvenlySpaced(kept=1)}
    brain = prune(tmp_path, source, layers=layers)
    ours = brain.modules.whisper
    assert [
        len(s.layers) for s in (ours.model.encoder, ours.model.decoder)
    ] == [
        2,
        1,
    ]
    export = str(tmp_path / "export")
    theirs = lobes.Whisper(export, str(tmp_path), **OPTIONS)
    assert_same_but_for_rounding(speak(theirs), speak(ours))
    found = [
        lobe.for_generation().generate(
            lobe._get_mel(data(lobe.tokenizer)[0]["wav"]), max_length=8
        )
        for lobe in (theirs, ours)
    ]
    assert torch.equal(*found)


def test_the_report_shows_both_sides(source, tmp_path):
    prune(tmp_path, source, target=SIDES)
    report = write_report(tmp_path / "export", seconds=3)  # it hears 2 of them
    table = [x for x in report.splitlines() if "|" in x]
    rows = [line.split("|")[1].strip() for line in table]
    assert "model.encoder.layers.0" in rows and "model.decoder.layers.1" in rows
    assert "MACs per second, model.encoder, model.decoder" in rows
    export = load_export(tmp_path / "export")
    step = export.steps[-1]
    cost = mac_cost(step.declaration, 200)  # frames of the context
    left = float(cost.of_kept(step.plan.kept_counts(step.declaration)))
    assert f"| {left / 2:,.0f} |" in report
