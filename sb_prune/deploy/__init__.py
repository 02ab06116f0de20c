"""Deployment: a recogniser as ONNX graphs, which run without SpeechBrain.

`folder` deploys an export, `runtime` transcribes with what it wrote. What runs
without torch is `runtime`, `search` and `settings`; nothing of it imports the
others.
"""

from sb_prune.deploy.runtime import OnnxASR

__all__ = ["OnnxASR"]
