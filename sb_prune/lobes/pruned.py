"""What all lobes do to load a pruned model."""

from transformers.utils import cached_file

from sb_prune.export.hugging_face import (
    WEIGHTS,
    assign,
    attention_of,
    build_model,
    check_weights,
    edits_of,
    naming_source,
)


class PrunedLobe:
    """Mixin of a lobe of SpeechBrain that loads exports of sb_prune too."""

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        with naming_source(source):
            edits = edits_of(self.config)
        if not edits:
            super()._from_pretrained(
                source, save_path, cache_dir, device, **kwargs
            )
            return
        others = kwargs.keys() - {"attn_implementation", "trust_remote_code"}
        if self.quantization_config is not None:
            others.add("quantization_config")
        if others:
            raise ValueError(
                f"{', '.join(sorted(others))}: the model in {source} was "
                "pruned, and is loaded in float32, as it was saved: leave "
                "this out"
            )
        with naming_source(source):
            self.model = build_model(self.config, **attention_of(kwargs))
            weights = cached_file(source, WEIGHTS, cache_dir=save_path)
            check_weights(self.config, weights)
            self._assign(weights)
        if device is not None:
            self.model.to(device)

    def _assign(self, weights):
        """Gives the model the weights in a file."""
        assign(self.model, weights)
