"""Export folders, loaded and explained."""

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
    """An export folder that cannot be read, and what to do about it."""


@dataclass(frozen=True)
class Export:
    """A loaded export folder.

    Arguments
    ---------
    declaration : Declaration
        Of the dense model, on the meta device.
    plan : Plan
        What stayed.
    hparams : dict
        The objects of its `hyperparams.yaml`, weights loaded, in eval mode.
    key : str
        Which of them is the root of the declaration.
    """

    declaration: Declaration
    plan: Plan
    hparams: dict
    key: str

    @property
    def encoder(self):
        """What EncoderASR and EncoderDecoderASR call.

        Raises
        ------
        ExportError
            If the model is for neither of the two.
        """
        if "encoder" not in self.hparams["modules"]:
            raise ExportError(
                "hyperparams.yaml has no `encoder` in its `modules`; only "
                "models for EncoderASR and EncoderDecoderASR can be measured"
            )
        return self.hparams["modules"]["encoder"]

    @property
    def scope(self):
        """The cut modules whose cost the budget counted."""
        module = self.hparams[self.key]
        return [module.get_submodule(n) for n in self.declaration.scope]


def load_export(folder):
    """Loads an export folder with SpeechBrain's own means.

    Arguments
    ---------
    folder : str
        As `export_model` wrote it.

    Returns
    -------
    Export

    Raises
    ------
    ExportError
        If it is no export, truncated or edited.
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
    """Whatever fails inside is the fault of one file, and said so."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # torn files fail in any way
        said = reason(error)
        if isinstance(error, ValueError) and str(path) in said:
            raise ExportError(said) from error  # sb_prune's own words
        raise ExportError(
            f"{path} cannot be read (truncated or edited?): {said[:200]}; "
            "copy the whole export folder again, or rerun train.py to write "
            "it anew"
        ) from error


def _read_plan(yaml_file):
    """Key, dense declaration and plan, with no weights made."""
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
    """Loads one file as the folder's own Pretrainer would."""
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
