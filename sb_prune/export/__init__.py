"""Exports: folders with a pruned model that `from_hparams` can load.

`folder` writes and checks an export. `document` turns the YAML of the dense
model into that of the export, `build` has the functions that this YAML calls,
`loading` reads an export back, and `card` writes its README. `encoders` and
`hugging_face` make it a Hugging Face folder too.
"""

from sb_prune.export.build import load_verified
from sb_prune.export.old_formats import build_cut

__all__ = ["build_cut", "load_verified"]  # exports of format 1 look them up
