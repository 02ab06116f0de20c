"""The lobe of Whisper: dense models as SpeechBrain loads them, and contexts."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from speechbrain.integrations.huggingface import whisper as stock
from tiny_whisper import write_tiny_whisper

from sb_prune import LayerwiseDistillation, Teacher, lobes
from sb_prune.distillation.teacher import padded_frames
from sb_prune.lobes import whisper as ours

SECONDS = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder."""
    folder = tmp_path_factory.mktemp("whisper")
    write_tiny_whisper(folder)
    return str(folder)


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """That of a model without other languages."""
    folder = tmp_path_factory.mktemp("english")
    write_tiny_whisper(folder, english=True)
    return str(folder)


@pytest.fixture
def load(folder):
    """Function: options -> lobe in evaluation mode."""
    return lambda **options: lobes.Whisper(folder, folder, **options).eval()


@pytest.fixture
def wav():
    """(2, 3 s)"""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(2, 3 * SECONDS, generator=generator)


@pytest.fixture
def prefix(load):
    return torch.tensor([load().tokenizer.prefix_tokens] * 2)


@torch.no_grad()
def test_without_a_context_it_is_speechbrains(folder, load, wav, prefix):
    """One utterance at a time, as neighbours count in SpeechBrain's."""
    theirs, ours = stock.Whisper(folder, folder).eval(), load()
    for one, tokens in zip(wav.split(1), prefix.split(1)):
        expected = theirs(one, tokens)
        for found, wanted in zip(ours(one, tokens)[:2], expected):
            assert torch.equal(found, wanted)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_what_a_quiet_utterance_sounds_like(load, wav, dtype):
    """The same beside a loud one, and in mixed precision."""
    lobe, quiet = load(), 0.01 * wav[:1]
    alone = lobe._get_mel(quiet)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        mel = lobe._get_mel(torch.cat([quiet, wav[:1], 0 * quiet]))
    assert torch.equal(mel[:1], alone)
    assert mel.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(
    "context, seconds", [(10, 10), (5, 5), ("utterance", 8), (30, 30)]
)
def test_what_the_encoder_sees(load, wav, context, seconds):
    lobe = load(context=context)
    mel = lobe._get_mel(wav)
    assert mel.shape == (2, 80, 100 * seconds)
    assert lobe.forward_encoder(mel).shape == (2, 50 * seconds, 16)


@torch.no_grad()
def test_a_shorter_context_is_the_start_of_a_longer_one(load, wav):
    """Positions are those that the model knows: up to attention, the same."""
    lobe = load(context=10, margin=0)
    lobe.model.encoder.layers = torch.nn.ModuleList()
    mel = lobe._get_mel(wav)
    whole = lobe.forward_encoder(mel)
    part = lobe.forward_encoder(mel[..., :600])
    # the last frame of the second convolution looks at the next one
    assert torch.equal(whole[:, :299], part[:, :299])


def test_utterances_up_to_the_end(load):
    """The margin is silence, so no utterance needs it to be heard."""
    lobe = load(context="utterance", margin=2, min_context=0)
    assert lobe.samples_heard(29 * SECONDS) == 30 * SECONDS
    assert lobe.samples_heard(30 * SECONDS) == 30 * SECONDS
    assert lobe.samples_heard(16_001) == 48_320  # a whole frame more
    lobe = load(context="utterance", margin=0, min_context=0)
    assert lobe.samples_heard(1) == 320


def test_a_decoder_hears_eight_seconds_at_least(load):
    whole = load(context="utterance", margin=2)
    assert whole.samples_heard(SECONDS) == 8 * SECONDS
    assert whole.samples_heard(7 * SECONDS) == 9 * SECONDS
    lobe = load(context="utterance", margin=2, encoder_only=True)
    assert lobe.samples_heard(SECONDS) == 3 * SECONDS
    assert load(context=4).samples_heard(SECONDS) == 4 * SECONDS


@torch.no_grad()
@pytest.mark.parametrize(
    "options, ends", [({"context": 5}, 25), ({}, 0), ({"context": 30}, 0)]
)
def test_the_encoder_hears_the_end_of_the_window(load, wav, options, ends):
    """A quarter of the margin of 2 s has the positions of the last 0.5 s."""
    lobe, heard = load(**options), []
    weight = lobe.model.encoder.embed_positions.weight
    lobe.model.encoder.embed_positions.register_forward_hook(
        lambda module, args, output: heard.append(output)
    )
    lobe.forward_encoder(lobe._get_mel(wav))
    frames = len(heard[0]) - ends
    assert torch.equal(heard[0][:frames], weight[:frames])
    assert torch.equal(heard[0][frames:], weight[1500 - ends :])


@torch.no_grad()
def test_the_config_stays(load, wav):
    lobe = load(context="utterance")
    lobe.forward_encoder(lobe._get_mel(wav))
    with pytest.raises(RuntimeError):
        lobe.forward_encoder(lobe._get_mel(wav).double())
    assert lobe.model.config.max_source_positions == 1500
    assert lobe.model.encoder.embed_positions.num_embeddings == 1500


@torch.no_grad()
def test_training_hides_the_padding_of_tokens(load, wav):
    """So that distillation knows it; real tokens see none of it anyway."""
    lobe = load(context=5)
    pad = lobe.tokenizer.pad_token_id
    prefix = lobe.tokenizer.prefix_tokens
    tokens = torch.tensor([[*prefix, 65, 66], [*prefix, 65, pad]])
    expected = lobe(wav, tokens)[1]
    masks = []
    lobe.model.decoder.layers[0].register_forward_pre_hook(
        lambda layer, args: masks.append(args[1])
    )
    lobe.model.train()
    found = lobe(wav, tokens)[1]
    hidden = padded_frames("attention_mask", masks[-1])
    assert hidden.tolist() == (tokens == pad).tolist()
    torch.testing.assert_close(found[tokens != pad], expected[tokens != pad])


@torch.no_grad()
def test_decoding_in_training_mode_reads_its_cache(load, wav, prefix):
    lobe = load(context="utterance")
    encoded = lobe.forward_encoder(lobe._get_mel(wav))
    lobe.model.train()
    _, _, cache = lobe.forward_decoder(encoded, prefix)
    tokens = torch.cat([prefix, prefix[:, :1]], dim=1)
    found = lobe.forward_decoder(encoded, tokens, past_key_values=cache)[0]
    lobe.model.eval()
    expected = lobe.forward_decoder(encoded, tokens)[0][:, -1:]
    torch.testing.assert_close(found, expected)


def test_generate(load, wav):
    lobe = load(context="utterance", min_context=0)
    model = lobe.for_generation(seconds=5)
    found = model.generate(lobe._get_mel(wav), max_length=7, do_sample=False)
    tokens = torch.tensor([[lobe.bos]] * 2)
    for _ in range(found.shape[1]):
        logits = lobe(wav, tokens)[1]
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, tokens[:, 1:])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context": 40}, "context: 40; Whisper hears 30 s"),
        ({"context": 0}, "context: 0; write a number above 0"),
        ({"context": "utterances"}, "context: 'utterances'; write"),
        ({"context": 2}, "context: 2; write more than the margin of 2 s"),
        ({"margin": -1}, "margin: -1; write a number, 0 or more"),
        ({"min_context": 40}, "min_context: 40; Whisper hears 30 s"),
        ({"attn_implementation": "eagre"}, 'attn_implementation="eagre"'),
    ],
)
def test_wrong_options(load, options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


@torch.no_grad()
def test_eager_attention_hears_the_same(load, wav, prefix):
    lobe = load(attn_implementation="eager")
    attention = lobe.model.encoder.layers[0].self_attn
    assert attention.config._attn_implementation == "eager"
    for found, expected in zip(lobe(wav, prefix)[:2], load()(wav, prefix)):
        assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("context", [None, 4.01, "utterance"])
def test_aligned_frames_are_those_of_the_audio(load, wav, context):
    """All is heard, then the silence behind the audio is dropped."""
    options = {"encoder_only": True, "context": context, "margin": 1.0}
    wav = wav[:, :-319]  # the last frame begins with the last sample
    aligned = load(aligned=True, **options)(wav)
    assert aligned.shape == (2, 150, 16)
    assert torch.equal(aligned, load(**options)(wav)[:, :150])


@torch.no_grad()
def test_aligned_audio_longer_than_the_context(load, wav):
    """In equal pieces of whole frames, each of them as if it were alone."""
    options = {"encoder_only": True, "context": 1.25, "aligned": True}
    options["margin"] = 0.25
    lobe = load(**options)
    whole, piece = lobe(wav), SECONDS
    assert whole.shape == (2, 150, 16)
    for i in range(3):
        alone = lobe(wav[:, piece * i : piece * (i + 1)])
        assert torch.equal(whole[:, 50 * i : 50 * (i + 1)], alone)
    states = load(output_all_hiddens=True, **options)(wav)
    assert states.shape == (3, 2, 150, 16)
    assert torch.equal(states[-1], whole)


@torch.no_grad()
def test_aligned_audio_a_little_longer_than_the_context(load):
    """The context without its margin is no whole number of frames."""
    options = {"encoder_only": True, "context": 3.01, "margin": 0.5}
    lobe = load(aligned=True, **options)
    assert lobe(torch.zeros(1, 40_300)).shape == (1, 126, 16)


@torch.no_grad()
def test_no_audio_has_no_aligned_frames(load):
    lobe = load(aligned=True, encoder_only=True, context=3.0, margin=0.5)
    assert lobe(torch.zeros(1, 0)).shape == (1, 0, 16)


def test_aligned_frames_are_not_for_the_decoder(load):
    with pytest.raises(ValueError, match="aligned: True; .*encoder_only: True"):
        load(aligned=True)


def test_longer_than_the_context(load, wav):
    said = "context: 4.5: an utterance takes 3.00 s, and a margin of 2 s; write"
    with pytest.raises(ValueError, match=said):
        load(context=4.5)(wav, None)


@pytest.mark.parametrize("context", [None, "utterance"])
def test_the_end_of_more_than_30_s_is_not_heard(load, context, monkeypatch):
    """As in SpeechBrain's lobe; but it says so."""
    said = []
    monkeypatch.setattr(
        ours, "logger", SimpleNamespace(warning_once=said.append)
    )
    generator = torch.Generator().manual_seed(0)
    wav = 0.1 * torch.randn(1, 31 * SECONDS, generator=generator)
    lobe = load(context=context)
    assert torch.equal(
        lobe._get_mel(wav), lobe._get_mel(wav[:, : 30 * SECONDS])
    )
    assert set(said) == {"Whisper hears the first 30 s of an utterance"}


def test_wrong_features(load):
    lobe = load()
    with pytest.raises(ValueError, match="128 channels; this model takes 80"):
        lobe.forward_encoder(torch.zeros(1, 128, 3000))
    for frames in (3001, 3002):
        with pytest.raises(ValueError, match="even number of them, 3000 at m"):
            lobe.forward_encoder(torch.zeros(1, 80, frames))


def test_features_of_another_model(folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "copy")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["feature_size"] = 128
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="128 channels; this model takes 80"):
        lobes.Whisper(str(folder), str(folder))


def test_a_language_without_a_token(load):
    with pytest.raises(ValueError, match=r"'yue'; the tokenizer of .* has no"):
        load(language="yue")


def test_a_context_of_no_whole_frame_and_margin(load):
    with pytest.raises(ValueError, match="write more than the margin of 2 s"):
        load(context=2.01, margin=2.0)


def test_english_only(english):
    lobe = lobes.Whisper(english, english, language="en")
    assert not lobe.is_multilingual
    with pytest.raises(ValueError, match="language: 'de'; this Whisper knows"):
        lobes.Whisper(english, english, language="de")
    with pytest.raises(ValueError, match="task: 'translate'; this Whisper kn"):
        lobes.Whisper(english, english, task="translate")


def test_without_tokens_the_decoder_rests(load, wav, prefix):
    """Student and teacher alike; the states learn the same."""
    lobe, dense = load(context="utterance"), load(context="utterance")
    with torch.no_grad():
        lobe.model.encoder.layers[0].fc1.weight.mul_(1.1)
    teacher = Teacher({"whisper": dense})
    teacher.listen_({"whisper": lobe})
    loss = LayerwiseDistillation(
        hidden_weight=0, states={"whisper": 0}, task_weight=0
    )
    gradients, calls = [], []
    lobe.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    for tokens in (prefix, None):
        lobe.zero_grad()
        teacher.begin_()
        _, logits, _ = lobe(wav, tokens)
        sum(loss.losses(teacher).values()).backward()
        gradients.append(lobe.model.encoder.layers[0].fc1.weight.grad.clone())
    assert logits is None and len(calls) == 1
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_frozen_lobe_learns_nothing_without_tokens_either(load, wav):
    states, *_ = load(freeze=True)(wav)
    assert not states.requires_grad
