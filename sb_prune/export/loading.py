"""Loads an export folder, with errors that say which file is damaged."""

import io
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.checkpoints import PARAMFILE_EXT

from sb_prune.declare.plan import Plan
from sb_prune.declare.structure import Declaration
from sb_prune.export.build import Pretrainer
from sb_prune.export.formats import BUILDERS, check_format
from sb_prune.export.yaml_nodes import tag_of
from sb_prune.support.disk import reason


class ExportError(ValueError):
    """Says why an export folder cannot be loaded, and what to do."""


@dataclass(frozen=True)
class Export:
    """A loaded export folder.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model, on the meta device.
    plan : Plan
        The units that were kept.
    hparams : dict
        The objects of its `hyperparams.yaml`, in eval mode and with weights.
    key : str
        Key of the object that is the root of the declaration.
    """

    declaration: Declaration
    plan: Plan
    hparams: dict
    key: str

    @property
    def encoder(self):
        """The encoder that EncoderASR and EncoderDecoderASR call.

        Raises
        ------
        ExportError
            If the model is made for another interface.
        """
        if "encoder" not in self.hparams["modules"]:
            raise ExportError(
                "hyperparams.yaml has no `encoder` in its `modules`; only "
                "models for EncoderASR and EncoderDecoderASR can be measured"
            )
        return self.hparams["modules"]["encoder"]

    @property
    def scope(self):
        """The modules whose cost the budget counted."""
        module = self.hparams[self.key]
        return [module.get_submodule(n) for n in self.declaration.scope]


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
        key, declaration, plan = _read_plan(yaml_file)
        plan.check(declaration)
        with open(yaml_file, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file)
        torch.nn.ModuleDict(hparams["modules"]).eval()
        pretrainer = hparams["pretrainer"]
    files = getattr(pretrainer, "files", {})
    for name in pretrainer.loadables:
        file = files.get(name, f"{name}{PARAMFILE_EXT}")
        _load_file(yaml_file.with_name(file), name, pretrainer)
    if any(p.is_meta for p in hparams[key].parameters()):
        raise ExportError(
            f"{yaml_file}: no loadable of its pretrainer holds {key}; add a "
            "module that contains it"
        )
    return Export(declaration, plan, hparams, key)


@contextmanager
def _blaming(path):
    """Context that turns any error into an ExportError about one file."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # a damaged file can raise anything
        said = reason(error)
        if isinstance(error, ValueError) and str(path) in said:
            raise ExportError(said) from error  # names the file already
        raise ExportError(
            f"{path} cannot be read (truncated or edited?): {said[:200]}; "
            "copy the whole export folder again, or rerun train.py to write "
            "it anew"
        ) from error


def _read_plan(yaml_file):
    """Reads key, dense declaration and plan from the YAML, without weights."""
    with open(yaml_file, encoding="utf-8") as file:
        resolved = resolve_references(file)
    document = ruamel.yaml.YAML().load(resolved)
    keys = [
        key
        for key, node in (document or {}).items()
        if tag_of(node) in BUILDERS
    ]
    if not keys:
        raise ExportError(
            f"{yaml_file} is no export of sb_prune: nothing in it is built "
            f"by {BUILDERS[0]}; name the export_folder of a pruning run"
        )
    node = document[keys[0]]
    alone = io.StringIO()
    check_format(node.get("format", 1))
    parts = {part: node[part] for part in ("factory", "structures", "plan")}
    ruamel.yaml.YAML().dump(parts, alone)
    parts = load_hyperpyyaml(alone.getvalue())
    with torch.device("meta"):
        dense = parts["factory"]()
    declaration = parts["structures"](dense)
    return keys[0], declaration, Plan.from_dict(parts["plan"])


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
