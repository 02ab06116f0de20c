"""Deployment: a recogniser as ONNX graphs, which run without SpeechBrain.

`folder` deploys an export, `runtime` transcribes with what it wrote. The latter
runs without torch; nothing of it imports the rest.
"""

from importlib import import_module

from sb_prune.deploy.runtime.asr import OnnxASR

__all__ = ["OnnxASR", "deploy"]


def __getattr__(name):
    if name == "deploy":  # needs torch, which a runtime may not have
        return import_module("sb_prune.deploy.folder").deploy
    raise AttributeError(f"module 'sb_prune.deploy' has no attribute {name!r}")
