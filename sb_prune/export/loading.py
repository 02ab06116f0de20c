"""Loads an export folder, with errors that say which file is damaged."""

import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Callable

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.checkpoints import PARAMFILE_EXT

from sb_prune.cut.edits import (
    Cut,
    Edit,
    LaterFormat,
    before_cuts,
    check_format,
    rebuild,
    steps_of,
)
from sb_prune.declare.roots import side_by_side
from sb_prune.export.build import Pretrainer
from sb_prune.export.document import BUILDER
from sb_prune.export.old_formats import BUILDERS, edits_of_plan
from sb_prune.export.yaml_nodes import tag_of
from sb_prune.support.audio import SAMPLE_RATE
from sb_prune.support.disk import reason

# what EncoderClassifier calls one after another, before its classifier
CLASSIFIER = ("compute_features", "mean_var_norm", "embedding_model")


class ExportError(ValueError):
    """Says why an export folder cannot be loaded, and what to do."""


class NoExport(ExportError):
    """Says that sb_prune has not written a folder."""


@dataclass(frozen=True)
class History:
    """What was done to stock modules: how to make them, and the edits since.

    Arguments
    ---------
    key : str
        Key of the object that was cut.
    factory : callable
        Makes the stock module, or several in a ModuleDict.
    edits : list of Edit
    text : str
        HyperPyYAML that `read_history` reads to the same; a run keeps it.
    """

    key: str
    factory: Callable
    edits: list
    text: str = ""

    @property
    def module(self):
        """Key of the module that was cut, or a list of keys of several."""
        made = partial(self.factory)
        several = made.func is side_by_side
        return list(made.keywords) if several else self.key

    def rebuild(self, count=None):
        """Builds the module after the first edits, on the meta device.

        Arguments
        ---------
        count : int, optional
            How many edits; by default all.
        """
        return rebuild(self.factory, self.edits[:count])

    def original(self):
        """Builds the dense module before the first cut, on the meta device."""
        return rebuild(self.factory, before_cuts(self.edits))

    def stock(self):
        """Builds the stock module, on the meta device."""
        return self.rebuild(0)

    def steps(self):
        """Lists the cuts among the edits, as `steps_of` does."""
        return steps_of(self.factory, self.edits)


@dataclass(frozen=True)
class Export:
    """A loaded export folder.

    Arguments
    ---------
    folder : Path
    history : History
        What was done to the cut modules since they were stock.
    hparams : dict
        The objects of its `hyperparams.yaml`, in eval mode and with weights.
    """

    folder: Path
    history: History
    hparams: dict

    @property
    def key(self):
        """Key of the object that was cut."""
        return self.history.key

    @cached_property
    def steps(self):
        """List of `Step`: the cuts, each with what it was declared on."""
        return self.history.steps()

    @property
    def encoder(self):
        """See `encoder_of`."""
        return encoder_of(self.hparams)

    @property
    def scope(self):
        """The modules whose cost the budget counted."""
        cuts = [e for e in self.history.edits if isinstance(e, Cut)]
        module = self.hparams[self.key].get_submodule(cuts[-1].module)
        names = self.steps[-1].declaration.scope
        return [module.get_submodule(name) for name in names]


def encoder_of(hparams):
    """The encoder that SpeechBrain's inference classes call.

    They are EncoderASR, EncoderDecoderASR, WhisperASR and EncoderClassifier.

    Arguments
    ---------
    hparams : dict
        The loaded objects of a `hyperparams.yaml`.

    Returns
    -------
    callable
        Waveforms (batch, samples) and relative lengths (batch,) -> states.

    Raises
    ------
    ExportError
        If the model is made for another interface.
    """
    modules = hparams["modules"]
    if "encoder" in modules:
        return modules["encoder"]
    if "whisper" in modules:
        return partial(_hear, modules["whisper"])
    if set(CLASSIFIER) <= modules.keys():
        return partial(_embed, *(modules[name] for name in CLASSIFIER))
    raise ExportError(
        "hyperparams.yaml has no `encoder` or `whisper` in its `modules`, nor "
        f"{', '.join(CLASSIFIER)}; only models for EncoderASR, "
        "EncoderDecoderASR, WhisperASR and EncoderClassifier can be measured"
    )


def _embed(compute_features, mean_var_norm, embedding_model, wavs, lengths):
    """Calls three modules as EncoderClassifier does."""
    feats = mean_var_norm(compute_features(wavs), lengths)
    return embedding_model(feats, lengths)


def _hear(whisper, wavs, wav_lens):
    """States of Whisper's encoder."""
    return whisper.forward_encoder(whisper._get_mel(wavs))


def seconds_heard(hparams, seconds, at_once=False):
    """How much of an utterance fits into the context of a Whisper.

    Arguments
    ---------
    hparams : dict
        The loaded objects of a `hyperparams.yaml`.
    seconds : float
        Of the utterance.
    at_once : bool
        Whether a Whisper that hears pieces one by one is asked for one piece.

    Returns
    -------
    float
        Seconds that the model hears; of other models than Whisper, all.
    """
    limits = [
        module.longest / SAMPLE_RATE
        for each in hparams["modules"].values()
        for module in each.modules()
        if hasattr(module, "aligned") and (at_once or not module.aligned)
    ]
    return min([seconds, *limits])


def load_export(folder):
    """Loads an export folder, as SpeechBrain's own `from_hparams` would.

    Arguments
    ---------
    folder : str
        An export folder.

    Returns
    -------
    Export

    Raises
    ------
    ExportError
        If the folder is not an export, or a file is missing, truncated or
        edited.
    """
    yaml_file = Path(folder) / "hyperparams.yaml"
    if not yaml_file.is_file():
        raise ExportError(
            f"{folder} is no export of sb_prune: it has no hyperparams.yaml; "
            "name the export_folder of a finished pruning run, e.g. "
            "results/prune/1234/export"
        )
    with _blaming(yaml_file):
        text = yaml_file.read_text(encoding="utf-8")
        history = read_history(text, yaml_file)
        export = Export(Path(folder), history, {})
        _ = export.steps  # refuses edits that do not fit, before the weights
        with open(yaml_file, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file)
        torch.nn.ModuleDict(hparams["modules"]).eval()
        pretrainer = hparams["pretrainer"]
        own = getattr(pretrainer, "files", {})
        files = {
            name: yaml_file.with_name(own.get(name, f"{name}{PARAMFILE_EXT}"))
            for name in pretrainer.loadables
        }
    for name, file in files.items():
        _load_file(file, name, pretrainer)
    if any(p.is_meta for p in hparams[history.key].parameters()):
        raise ExportError(
            f"{yaml_file}: no loadable of its pretrainer holds {history.key}; "
            "add a module that contains it"
        )
    export.hparams.update(hparams)
    return export


@contextmanager
def _blaming(path):
    """Context that turns any error into an ExportError about one file."""
    try:
        yield
    except ExportError:
        raise
    except LaterFormat as error:
        raise ExportError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, ValueError) and str(path) in str(error):
            raise ExportError(str(error)) from error  # names the file already
        said = reason(error)
        if isinstance(error, KeyError):
            said = f"it has no {said}"
        raise ExportError(
            f"{path} cannot be read (truncated or edited?): {said}; "
            "copy the whole export folder again, or rerun train.py to write "
            "it anew"
        ) from error


def read_history(text, name="this"):
    """Reads what was done to the stock modules, without weights.

    Arguments
    ---------
    text : str
        The `hyperparams.yaml` of an export, of any format, or the `text` of a
        `History`.
    name : object
        Where the text stands, for the error message.

    Returns
    -------
    History

    Raises
    ------
    ExportError
        If nothing in it was cut.
    ValueError
        If a later version of sb_prune wrote it.
    """
    document = ruamel.yaml.YAML().load(resolve_references(text))
    builders = (BUILDER, *BUILDERS)
    keys = [
        key
        for key, node in (document or {}).items()
        if tag_of(node) in builders
    ]
    if not keys:
        raise NoExport(
            f"{name} is no export of sb_prune: nothing in it is built by "
            f"{BUILDER}; name the export_folder of a pruning run"
        )
    node = document[keys[0]]
    format = node.get("format", 1)
    check_format(format)
    alone = io.StringIO()
    ruamel.yaml.YAML().dump({keys[0]: node}, alone)
    parts = ("factory", "edits", "structures", "plan")
    written = io.StringIO()
    ruamel.yaml.YAML().dump({p: node[p] for p in parts if p in node}, written)
    parts = load_hyperpyyaml(written.getvalue())
    if format < 3:
        edits = edits_of_plan(parts["structures"], parts["plan"])
    else:
        edits = parts["edits"]
        _check_edits(edits)
    return History(keys[0], parts["factory"], edits, alone.getvalue())


def _check_edits(edits):
    is_list = isinstance(edits, list)
    if not (is_list and all(isinstance(edit, Edit) for edit in edits)):
        raise ValueError("edits: is no list of edits, such as sb_prune.Cut")


def _load_file(path, key, pretrainer):
    """Loads one file, in the way of the export's own Pretrainer."""
    if not path.is_file():
        raise ExportError(
            f"{path} is missing; copy the whole export folder again"
        )
    with _blaming(path):
        alone = Pretrainer(
            files={key: path.name},
            loadables={key: pretrainer.loadables[key]},
            custom_hooks=pretrainer.custom_hooks,
        )
        alone.collect_files(default_source=str(path.parent))
        alone.load_collected()
