"""What one ships: a folder that SpeechBrain's own `from_hparams` loads.

`folder` writes and checks it; `document` turns the YAML of the dense model into
its own; `build` has what that YAML names, `loading` reads it back, `card` says
what is inside. `hugging_face` makes it a folder of that kind too.
"""

from sb_prune.export.build import build_cut, load_verified

__all__ = ["build_cut", "load_verified"]  # names that exports of format 1 hold
