"""Sizes of the published students of HuBERT Base.

    python tests/benchmarks/student_size.py

Jang et al., "Recycle-and-Distill" (Interspeech 2023, 2305.11685), report 26.45,
22.39 and 26.64 M parameters, and that ARMHuBERT-S has 26.9% of the MACs. Their
totals have the twelve linear heads in them that distillation puts on the layers
(width -> 768) and that an export has not; so do the figures here, those without
are beside them. MACs are PyTorch's count of one forward of 10 s, attention
included, on tensors without memory.
"""

import torch
from common import run
from transformers import HubertConfig, HubertModel

from sb_prune.students import make_student
from sb_prune.support.measure import count_macs

SECONDS = 10
FRONT_END = [[128, 10, 5], [256, 1, 1], *[[256, 3, 2]] * 4]
REUSE = [False, True] * 6
STUDENTS = {  # name -> width, hidden units, reuse
    "armhubert": (480, 864, REUSE),
    "armhubert_s": (432, 816, REUSE),
    "maskhubert": (480, 640, None),
}


def macs_of(model):
    """MACs of a forward."""
    wavs = torch.zeros(1, 16000 * SECONDS, device="meta")
    return count_macs(lambda wavs, lengths: model(wavs), wavs)


def measure(full):
    """Parameters, and MACs beside the teacher's."""
    found = {}
    with torch.device("meta"):
        config = HubertConfig(attn_implementation="eager")
        teacher = HubertModel(config).eval()
        dense = macs_of(teacher)
        for name, (width, hidden, reuse) in STUDENTS.items():
            conv = [*FRONT_END, [width, 1, 1], *[[width, 2, 2]] * 2]
            student = make_student(teacher, width, hidden, conv, reuse).eval()
            heads = torch.nn.ModuleList(
                torch.nn.Linear(width, config.hidden_size)
                for _ in student.encoder.layers
            )
            size, more = (
                sum(p.numel() for p in module.parameters())
                for module in (student, heads)
            )
            frames = student._get_feat_extract_output_lengths(16000 * SECONDS)
            projected = int(frames) * width * config.hidden_size * len(heads)
            macs = macs_of(student)
            found[f"{name}_params"] = size + more
            found[f"{name}_params_exported"] = size
            found[f"{name}_macs_ratio"] = round((macs + projected) / dense, 4)
            found[f"{name}_macs_ratio_exported"] = round(macs / dense, 4)
    return found


if __name__ == "__main__":
    run(measure)
