"""What the YAML of an export calls to load its files."""

import torch
from speechbrain.utils import parameter_transfer
from speechbrain.utils.checkpoints import (
    DEFAULT_LOAD_HOOKS,
    DEFAULT_TRANSFER_HOOKS,
    get_default_hook,
)

from sb_prune.export.loadables import is_plain_module
from sb_prune.support.disk import reason
from sb_prune.support.hashes import check_hash


def load_verified(loaded, path, sha256):
    """Loads a file of an export after checking its hash; a Pretrainer hook.

    Arguments
    ---------
    loaded : object
        A module, whose parameters may be on the meta device, or any other
        object that a Pretrainer can load.
    path : str
        The file. A state dict is memory-mapped and assigned, not copied. That
        of a Hugging Face encoder is a safetensors file.
    sha256 : str
        Hash of the file at the export, as hexadecimal digits.

    Raises
    ------
    ValueError
        If the file was truncated or edited, or does not fit the module.
    """
    check_hash(path, sha256)
    if _is_safetensors(path):
        from sb_prune.export.hugging_face import assign  # needs transformers

        assign(loaded.model, path)
        return
    if is_plain_module(loaded):
        _assign_weights(loaded, path)
        return
    hook = get_default_hook(loaded, DEFAULT_TRANSFER_HOOKS)
    if hook is not None:
        hook(loaded, path)
    else:  # as a Pretrainer does
        get_default_hook(loaded, DEFAULT_LOAD_HOOKS)(loaded, path, False)


def _is_safetensors(path):
    """Whether a file is in the format safetensors, by its first bytes.

    The ending says nothing, as a Pretrainer links every file as a .ckpt.
    """
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"  # 8 bytes of length, then a JSON header


def _assign_weights(module, path):
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the model in hyperparams.yaml (was one of "
            f"them edited?): {reason(error)}; copy the whole folder again"
        ) from error
    tensors = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise ValueError(f"{path} has no values for {empty}")


class Pretrainer(parameter_transfer.Pretrainer):
    """SpeechBrain's Pretrainer, for files that are not named `<key>.ckpt`.

    Arguments
    ---------
    files : dict
        Key of a loadable -> name of its file in the source. Others are named
        `<key>.ckpt`, as usual.
    **kwargs
        Arguments of `speechbrain.utils.parameter_transfer.Pretrainer`.

    Example
    -------
    >>> linear = torch.nn.Linear(1, 1)
    >>> folder = getfixture("tmp_path")
    >>> torch.save(linear.state_dict(), folder / "weights.pt")
    >>> pretrainer = Pretrainer(
    ...     files={"linear": "weights.pt"}, loadables={"linear": linear}
    ... )
    >>> paths = pretrainer.collect_files(default_source=str(folder))
    >>> paths["linear"].name
    'weights.pt'
    """

    def __init__(self, files=None, **kwargs):
        super().__init__(**kwargs)
        self.files = files or {}

    def collect_files(self, default_source=None, **kwargs):
        """Finds or downloads the files, as SpeechBrain's Pretrainer does.

        Arguments
        ---------
        default_source : str, optional
            Folder or repository of the files.
        **kwargs
            Arguments of SpeechBrain's `collect_files`.

        Returns
        -------
        dict
            Key of a loadable -> path.
        """
        if default_source is not None:
            for key, file in self.files.items():
                self.paths.setdefault(key, f"{default_source}/{file}")
        return super().collect_files(default_source, **kwargs)
