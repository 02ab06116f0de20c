"""Narrow students of Whisper's encoder, whose layers may reuse maps."""

import pytest
import torch
from rounding import assert_same_but_for_rounding
from tiny_whisper import write_tiny_whisper
from transformers import AutoModel

from sb_prune import lobes, whisper_structures
from sb_prune.cut.surgery import cut_
from sb_prune.lobes import save_encoder
from sb_prune.students import make_student, write_student

LAYERS = 4
REUSE = [False, True, True, False]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "teacher"
    write_tiny_whisper(folder, encoder_layers=LAYERS)
    return str(folder)


@pytest.fixture
def teacher(source):
    return AutoModel.from_pretrained(source).eval()


def states(model, frames=200):
    torch.manual_seed(0)
    mel = torch.randn(2, 80, frames)
    encoder = model.encoder
    # the lobe shortens what is heard; here the table of positions is cut
    encoder.config.max_source_positions = frames // 2
    positions = encoder.embed_positions
    positions.weight = torch.nn.Parameter(positions.weight[: frames // 2])
    positions.num_embeddings = frames // 2
    with torch.no_grad():
        return encoder(mel).last_hidden_state


def test_without_changes_it_is_the_teacher(teacher):
    student = make_student(teacher).eval()
    assert not [*student.decoder.parameters()]
    assert_same_but_for_rounding(states(student), states(teacher))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_reused_map_is_that_of_the_layer_below(source, attention):
    teacher = AutoModel.from_pretrained(source, attn_implementation=attention)
    student = make_student(teacher.eval(), reuse=REUSE).eval()
    maps = []
    for layer in student.encoder.layers:
        layer.self_attn.register_forward_hook(
            lambda module, args, output: maps.append(output[1])
        )
    whole = make_student(teacher).eval()
    first = [
        model.encoder.layers[0].register_forward_hook(
            lambda module, args, output, found=found: found.append(output)
        )
        and found
        for model, found in ((student, []), (whole, []))
    ]
    states(student), states(whole)
    assert_same_but_for_rounding(*(found[0] for found in first))
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2])
    names = {n for n, _ in student.encoder.layers[1].self_attn.named_children()}
    assert names == {"v_proj", "out_proj"}
    assert hasattr(student.encoder.layers[3].self_attn, "q_proj")


def test_the_lobe_loads_a_saved_student(source, tmp_path):
    folder = write_student(
        str(tmp_path / "student"),
        source,
        hidden_size=8,
        intermediate_size=12,
        reuse=REUSE,
    )
    options = {"encoder_only": True, "aligned": True, "context": "utterance"}
    student = lobes.Whisper(folder, folder, **options).eval()
    wavs = torch.randn(2, 16000)
    with torch.no_grad():
        found = student(wavs)
    assert found.shape == (2, 50, 8)
    save_encoder(student, str(tmp_path / "again"))
    again = lobes.Whisper(str(tmp_path / "again"), folder, **options).eval()
    with torch.no_grad():
        assert torch.equal(again(wavs), found)
    positions = student.model.encoder.embed_positions.weight
    assert positions.std() > 0.1 and positions[0, 0] == 0  # sines, not noise


def test_what_cannot_be_built(teacher):
    with pytest.raises(ValueError, match="conv: Whisper's two convolutions"):
        make_student(teacher, conv=[[8, 3, 1], [8, 3, 2]])
    with pytest.raises(ValueError, match="hidden_size: 9"):
        make_student(teacher, hidden_size=9)
    with pytest.raises(ValueError, match="reuse: 1 entries for 4 layers"):
        make_student(teacher, reuse=[False])


def test_a_narrow_student_is_pruned(teacher, random_plan):
    student = make_student(teacher, hidden_size=8).eval()
    declaration = whisper_structures(student)
    cut_(declaration, random_plan(declaration))
    assert torch.isfinite(states(student)).all()


def test_layers_that_share_a_map_are_refused_by_name(teacher):
    student = make_student(teacher, reuse=REUSE)
    with pytest.raises(ValueError, match="layers.0.self_attn: several layers"):
        whisper_structures(student)


def test_masked_frames_are_not_heard(source, tmp_path):
    options = {"encoder_only": True, "context": "utterance", "margin": 0.5}
    lobe = lobes.Whisper(source, str(tmp_path), aligned=True, **options).eval()
    wavs = torch.randn(2, 16000)
    frames = lobe.speech_frames(16000)
    mask = torch.zeros(2, frames, dtype=torch.bool)
    heard = []
    lobe.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(
            args[0] if args else kwargs["input_features"]
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        whole = lobe(wavs)
        assert torch.equal(lobe(wavs, None, mask), whole)
        mask[0, 10:20] = True
        masked = lobe(wavs, None, mask)
    assert not heard[-1][0, :, 20:40].any() and heard[-1][0, :, 40:50].any()
    assert torch.equal(heard[-1][1], heard[0][1])
    assert masked.shape == whole.shape
    assert not torch.equal(masked[0], whole[0])
    plain = lobes.Whisper(source, str(tmp_path), **options)
    with pytest.raises(ValueError, match="aligned: True"):
        plain(wavs, None, mask)


def test_a_mask_is_split_as_the_audio_is(source, tmp_path):
    """31 s are heard in two pieces; the second is masked from its start."""
    options = {"encoder_only": True, "context": "utterance", "aligned": True}
    lobe = lobes.Whisper(source, str(tmp_path), **options).eval()
    wavs = torch.randn(1, 31 * 16000)
    mask = torch.zeros(1, 31 * 50, dtype=torch.bool)
    mask[0, 775:] = True
    with torch.no_grad():
        whole, masked = lobe(wavs), lobe(wavs, None, mask)
    assert torch.equal(whole[0, :775], masked[0, :775])
    assert not torch.allclose(whole[0, 775:], masked[0, 775:])
