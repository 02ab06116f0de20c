"""Export: a folder that SpeechBrain's own `from_hparams` loads.

The recipe gives the YAML with which it would publish the *dense* model: an
ordinary inference `hyperparams.yaml`, whose `!PLACEHOLDER` scalars take their
values from the training YAML. The export is that file with the pruned module
built by `build_cut` and every file loaded by `load_verified`, beside them the
weights, the normaliser, the tokenizer and a card. Where a Hugging Face lobe of
SpeechBrain was cut, the folder is one of its kind too: see `lobes.py`.
"""

import hashlib
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import ruamel.yaml
import torch
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.tag import Tag
from speechbrain.utils.checkpoints import (
    DEFAULT_LOAD_HOOKS,
    DEFAULT_SAVE_HOOKS,
    DEFAULT_TRANSFER_HOOKS,
    get_default_hook,
)
from speechbrain.utils.logger import get_logger

from sb_prune.durable import naming_what_fails, rename_
from sb_prune.folding import fold_, folded_state
from sb_prune.loading import BUILDER, load_export, tag_of
from sb_prune.parallel import unwrap
from sb_prune.plan import Plan
from sb_prune.roots import entries_of
from sb_prune.snapshots import generators_untouched
from sb_prune.surgery import cut_
from sb_prune.table import format_table, structure_table

logger = get_logger(__name__)

MARK = "sb_prune export"
TOGETHER = "pruned_modules"  # key of what is built by one plan


def build_cut(factory, structures, plan):
    """Builds a cut module without ever allocating the dense one.

    Arguments
    ---------
    factory : callable
        Makes the dense stock module.
    structures : callable
        Module -> Declaration, as in training.
    plan : dict
        As `Plan.to_dict` writes it.

    Returns
    -------
    torch.nn.Module
        On the meta device; `load_verified` fills it.

    Raises
    ------
    ValueError
        If the plan was made for another architecture.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import conformer_structures
    >>> small = build_cut(
    ...     partial(ConformerEncoder, 1, d_model=8, d_ffn=16, nhead=4),
    ...     partial(conformer_structures, kinds=["heads"]),
    ...     {"layers.0.mha_layer.heads": "1 of 4: 2"},
    ... )
    >>> small.layers[0].mha_layer.in_proj_weight
    Parameter containing:
    tensor(..., device='meta', size=(6, 8), requires_grad=True)
    """
    with torch.device("meta"):
        module = factory()
    cut_(structures(module), Plan.from_dict(plan))
    fold_(module)
    return module


def load_verified(loaded, path, sha256):
    """Loads one file of an export if it is the one exported; a Pretrainer
    hook.

    Arguments
    ---------
    loaded : object
        A module (its parameters may be on the meta device), or anything that
        a Pretrainer loads.
    path : str
        The file; a state dict is memory-mapped and assigned.
    sha256 : str
        What the file must hash to.

    Raises
    ------
    ValueError
        If the file was truncated or edited, or does not fit the module.
    """
    check_exported(path, sha256)
    if _is_plain_module(loaded):
        _assign_weights(loaded, path)
        return
    hook = get_default_hook(loaded, DEFAULT_TRANSFER_HOOKS)
    if hook is not None:
        hook(loaded, path)
    else:  # as a Pretrainer does
        get_default_hook(loaded, DEFAULT_LOAD_HOOKS)(loaded, path, False)


def _assign_weights(module, path):
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the model in hyperparams.yaml (was it "
            f"edited?): {error}"
        ) from error
    tensors = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise ValueError(f"{path} has no values for {empty}")


def check_exported(path, sha256):
    """Refuses a file that is not the one exported.

    Arguments
    ---------
    path : str
        The file.
    sha256 : str
        What it must hash to.

    Raises
    ------
    ValueError
    """
    if file_hash(path) != sha256:
        raise ValueError(
            f"{path} is not the file that was exported (truncated, edited or "
            "of another export); copy the whole folder again"
        )


def file_hash(path):
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def export_model(folder, inference, brain, module, structures, plan, facts):
    """Writes the export folder, checks it, and renames it into place.

    Arguments
    ---------
    folder : str
        Where; an earlier export there is replaced.
    inference : str
        YAML of the dense model, as for publishing.
    brain : Brain
        With the trained, cut modules and the objects the YAML loads.
    module : str or list of str
        Keys of the cut modules, in the recipe's `modules` and in the YAML.
    structures : callable
        Module -> Declaration.
    plan : Plan
        What was kept.
    facts : dict
        Measured figures for the card.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the YAML lacks something, or `folder` holds anything else.
    """
    folder = Path(folder)
    document = prepare_document(folder, inference, brain, module)
    place = folder.resolve()  # a link to another disk stays one
    aside = place.with_name(place.name + ".incomplete")
    encoders = _encoders(brain, module, inference)
    for entry, lobe in encoders.items():
        _describe_encoder(document, entry, lobe)
    _wrap_cut_modules(document, module, structures, plan)
    with naming_what_fails(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _save_loadables(document, inference, brain, aside)
        for entry, lobe in encoders.items():
            inside = _plan_inside(plan, module, f"{entry}.model.")
            _save_encoder(document, entry, lobe, inside, aside)
        _write_yaml(aside / "hyperparams.yaml", document)
    with generators_untouched():
        loaded = load_export(aside)
    _verify(loaded, brain, document)
    _verify_names(loaded, brain, inference)
    with naming_what_fails(folder):
        _write_card(aside / "README.md", loaded, facts)
        _replace(aside, place)
    logger.info(f"Exported to {folder}: {facts}")
    return folder


def _write_yaml(path, document):
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# {MARK}: made by sb_prune, plan inline\n")
        ruamel.yaml.YAML().dump(document, file)


def _replace(aside, folder):
    """A kill in between leaves no half export, and nothing to repair."""
    earlier = folder.with_name(folder.name + ".earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        rename_(folder, earlier)
    rename_(aside, folder)
    shutil.rmtree(earlier, ignore_errors=True)


def prepare_document(folder, inference, brain, module):
    """Reads the dense YAML and refuses early what could not be exported.

    Arguments
    ---------
    folder : Path
        Where the export will go.
    inference : str
        YAML of the dense model.
    brain : Brain
        Whose hparams fill the placeholders.
    module : str or list of str
        Keys of the modules that will be cut.

    Returns
    -------
    CommentedMap
        The YAML, placeholders filled.

    Raises
    ------
    ValueError
        If the YAML lacks something, or `folder` holds anything else.
    """
    _check_ours(Path(folder))
    document = _read(inference)
    _fill_placeholders(document, brain.hparams, inference)
    for entry in entries_of(module):
        if not tag_of(document.get(entry)).startswith("!new:"):
            raise ValueError(
                f"inference: {inference}: {entry} must be a !new: of the "
                "stock class, as in the training YAML"
            )
    if not isinstance(module, str):
        _check_together(document, module, inference)
    if not document.get("pretrainer", {}).get("loadables"):
        raise ValueError(
            f"inference: {inference} has no pretrainer with loadables; add "
            "one, as for any published SpeechBrain model"
        )
    for key, reference in document["pretrainer"]["loadables"].items():
        loaded = _find(brain, reference.value.strip("<>"), inference)
        _saver(loaded, key, inference)
    for entry in _encoders(brain, module, inference):
        if _key_of(document, entry) is None:
            raise ValueError(
                f"inference: {inference}: the pretrainer needs a loadable of "
                f"its own for the encoder; add {entry}: !ref <{entry}>, and "
                "leave it out of the others"
            )
    return document


def _check_together(document, entries, inference):
    """Whether several modules can be built at the place of the last."""
    if TOGETHER in document:
        raise ValueError(
            f"inference: {inference}: {TOGETHER} is what the export calls the "
            "cut modules; write another key"
        )
    above = list(document)[: _last_place(document, entries)]
    for key in above:
        early = _references(document[key]) & set(entries)
        if early:
            raise ValueError(
                f"inference: {inference}: {key} refers to {sorted(early)} "
                f"above the last of {entries}; move {key} below them"
            )


def _references(node):
    """Keys that a YAML node refers to."""
    if isinstance(node, dict):
        return set().union(*map(_references, node.values()))
    if isinstance(node, list):
        return set().union(*map(_references, node))
    if tag_of(node) not in ("!ref", "!copy"):
        return set()
    return set(re.findall(r"<(\w+)", node.value))


def _check_ours(folder):
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    yaml_file = folder / "hyperparams.yaml"
    if not (yaml_file.is_file() and MARK in yaml_file.read_text("utf-8")):
        raise ValueError(
            f"export_folder: {folder} holds something else; write a folder "
            "that does not exist"
        )


def _read(inference):
    if not Path(inference).is_file():
        raise ValueError(
            f"inference: {inference} does not exist; write the YAML of the "
            "dense model as for publishing (relative to where train.py runs)"
        )
    with open(inference, encoding="utf-8") as file:
        document = ruamel.yaml.YAML().load(file)
    if not isinstance(document, CommentedMap):
        raise ValueError(
            f"inference: {inference} is empty; write the YAML of the dense "
            "model as for publishing"
        )
    return document


def _tagged(tag, **items):
    """A mapping with a HyperPyYAML tag."""
    node = CommentedMap(items)
    node.yaml_set_ctag(Tag(suffix=tag))
    return node


def _fill_placeholders(document, hparams, inference):
    """Scalars of the dense YAML that follow the training YAML."""
    for key, node in document.items():
        if tag_of(node) != "!PLACEHOLDER":
            continue
        value = getattr(hparams, key, None)
        if not isinstance(value, (int, float, str, bool)):
            raise ValueError(
                f"inference: {inference}: {key} is a !PLACEHOLDER, but the "
                f"training YAML has no scalar {key}; write its value"
            )
        document[key] = value


def _wrap_cut_modules(document, module, structures, plan):
    """module: !new:Stock ... becomes module: !apply:build_cut of it.

    Several are built side by side from one plan, where the last of them
    stands, and each refers to its part.
    """
    if isinstance(module, str):
        factory = _factory(document[module])
        document[module] = _builder(factory, structures, plan)
        return
    place = _last_place(document, module) + 1 - len(module)
    factories = {entry: _factory(document.pop(entry)) for entry in module}
    together = _tagged("!name:sb_prune.roots.side_by_side", **factories)
    document.insert(place, TOGETHER, _builder(together, structures, plan))
    for i, entry in enumerate(module, start=1):
        part = f"<{TOGETHER}.{entry}>"
        node = TaggedScalar(part, tag=Tag(suffix="!ref"))
        document.insert(place + i, entry, node)


def _last_place(document, entries):
    return max(list(document).index(entry) for entry in entries)


def _factory(stock):
    """The node `!new:Stock ...` becomes `!name:Stock ...`."""
    stock.yaml_set_ctag(Tag(suffix=tag_of(stock).replace("!new:", "!name:")))
    return stock


# A Hugging Face lobe of SpeechBrain reads its shapes from a source; an export
# has them in its YAML, and its weights where the lobes of sb_prune look.


def _encoders(brain, module, inference):
    """Entry -> lobe, of the cut modules that are Hugging Face lobes."""
    lobes = sys.modules.get("speechbrain.integrations.huggingface.huggingface")
    if lobes is None:  # so nothing can be one; transformers is not needed
        return {}
    found = {
        entry: unwrap(_find(brain, entry, inference))
        for entry in entries_of(module)
    }
    return {
        entry: lobe
        for entry, lobe in found.items()
        if isinstance(lobe, lobes.HFTransformersInterface)
    }


def _describe_encoder(document, entry, lobe):
    """entry: !new:Lobe with a source becomes one made from its config."""
    from sb_prune import lobes  # it needs transformers, an extra

    stock = document[entry]
    sources = [stock.pop(key, None) for key in ("source", "save_path")]
    config, preprocessor = lobes.describe(lobe)
    document[entry] = _tagged(
        "!new:sb_prune.lobes.skeleton",
        lobe=_factory(stock),
        config=config,
        preprocessor=preprocessor,
    )
    for key in _references(sources) - _references(document):
        del document[key]  # nothing else needs to know where it came from


def _plan_inside(plan, module, prefix):
    """The part of a plan that lies in one module, by names from there."""
    if isinstance(module, str):  # names start inside the entry
        _, _, prefix = prefix.partition(".")
    return Plan(
        {
            name.removeprefix(prefix): kept
            for name, kept in plan.keep.items()
            if name.startswith(prefix)
        }
    )


def _key_of(document, entry):
    """Under which key the pretrainer loads exactly one entry, if it does."""
    loadables = document["pretrainer"]["loadables"]
    keys = [k for k, node in loadables.items() if _references(node) == {entry}]
    return keys[0] if keys else None


def _save_encoder(document, entry, lobe, plan, folder):
    """The encoder's weights in a file of their own instead of a checkpoint."""
    from sb_prune import lobes

    pretrainer, key = document["pretrainer"], _key_of(document, entry)
    (folder / f"{key}.ckpt").unlink()
    file = lobes.write_encoder(folder, lobe, plan)
    pretrainer.yaml_set_ctag(Tag(suffix="!new:sb_prune.loading.Pretrainer"))
    pretrainer["files"] = {key: file}
    pretrainer["custom_hooks"][key] = _tagged(
        "!name:sb_prune.lobes.load_verified", sha256=file_hash(folder / file)
    )


def _builder(factory, structures, plan):
    return _tagged(
        BUILDER,
        factory=factory,
        structures=_named(structures),
        plan=plan.to_dict(),
    )


def _named(value):
    """A callable as a `!name:` with its arguments; what else is, as it is."""
    if isinstance(value, list):
        return [_named(item) for item in value]
    if not callable(value):
        return value
    if not isinstance(value, partial):
        value = partial(value)
    arguments = {key: _named(item) for key, item in value.keywords.items()}
    name = f"{value.func.__module__}.{value.func.__name__}"
    return _tagged(f"!name:{name}", **arguments)


def _save_loadables(document, inference, brain, folder):
    """Saves each object that the YAML's Pretrainer will load."""
    pretrainer = document["pretrainer"]
    hooks = CommentedMap()
    for key, reference in pretrainer["loadables"].items():
        path = folder / f"{key}.ckpt"
        loaded = _find(brain, reference.value.strip("<>"), inference)
        _saver(loaded, key, inference)(loaded, path)
        hooks[key] = _tagged(
            "!name:sb_prune.export.load_verified", sha256=file_hash(path)
        )
    pretrainer["custom_hooks"] = hooks


def _saver(loaded, key, inference):
    """What writes an object to a path."""
    if _is_plain_module(loaded):
        return lambda module, path: torch.save(_cpu_state(module), path)
    hook = get_default_hook(loaded, DEFAULT_SAVE_HOOKS)
    if hook is not None:
        return hook
    model = getattr(loaded, "sp", loaded)  # SpeechBrain's SentencePiece
    if hasattr(model, "serialized_model_proto"):
        return lambda _, path: path.write_bytes(model.serialized_model_proto())
    raise ValueError(
        f"inference: {inference}: the pretrainer loads {key}, but nothing can "
        f"save a {type(loaded).__name__}; leave it out, or register "
        "checkpoint hooks for its class"
    )


def _is_plain_module(loaded):
    """Not e.g. InputNormalization, whose statistics are in no state dict."""
    return isinstance(loaded, torch.nn.Module) and (
        get_default_hook(loaded, DEFAULT_SAVE_HOOKS)
        is DEFAULT_SAVE_HOOKS[torch.nn.Module]
    )


def _cpu_state(module):
    state = folded_state(module)
    return {k: v.detach().cpu().clone() for k, v in state.items()}


def _find(brain, name, inference):
    """An object of the recipe: on the Brain, in hparams, in its `modules`."""
    for place in (vars(brain), vars(brain.hparams), dict(brain.modules)):
        if name in place:
            return place[name]
    raise ValueError(
        f"inference: {inference}: the pretrainer loads {name}, but the "
        "recipe has no object of that name; name it as in the training YAML"
    )


def _verify(loaded, brain, document):
    """Compares every tensor of the reloaded folder, bit for bit."""
    for key, theirs in loaded.hparams["pretrainer"].loadables.items():
        if not _is_plain_module(theirs):
            continue
        name = document["pretrainer"]["loadables"][key].value.strip("<>")
        theirs = _cpu_state(theirs)
        for tensor, value in _cpu_state(_find(brain, name, key)).items():
            if not torch.equal(value, theirs[tensor]):
                raise RuntimeError(f"export: {tensor} differs after reloading")


def _verify_names(loaded, brain, inference):
    """Compares modules of the same name: in a ModuleList, names are numbers,
    so that two layers of one shape could take each other's weights."""
    recipe = {**vars(brain.hparams), **dict(brain.modules)}
    for name, theirs in loaded.hparams.items():
        if not (_is_plain_module(theirs) and name in recipe):
            continue
        ours, theirs = _cpu_state(recipe[name]), _cpu_state(theirs)
        if ours.keys() == theirs.keys() and not all(
            torch.equal(ours[tensor], theirs[tensor]) for tensor in ours
        ):
            raise ValueError(
                f"inference: {inference}: {name} would get other weights than "
                f"the recipe's {name}; list the modules of each of the "
                "pretrainer's loadables in the order of the training YAML"
            )


def _write_card(path, loaded, facts):
    figures = [["figure", "value"], *facts.items()]
    table = structure_table(loaded.declaration, loaded.plan)
    parts = [
        "# Pruned speech model",
        "Loads like any SpeechBrain model; needs `pip install sb_prune`.",
        format_table(figures),
        "Units kept of all:",
        format_table(table),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
