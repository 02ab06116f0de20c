"""What happens to the models of SpeechBrain's own recipes.

    python tests/benchmarks/speechbrain_yamls.py [CHECKOUT]

Of every YAML below `CHECKOUT/recipes` the modules are built that hold a
Conformer, Branchformer or Transformer, a `ConvolutionFrontEnd`, or an encoder
of waveforms: their own widths, at most two layers; Hugging Face encoders tiny
and random, since no hub is asked, with the norms that their names say. Each is
declared, masked by a random plan without half of the parameters that can go,
and cut. What comes out is kept in speechbrain_yamls.json; from that, also
without a checkout, docs/speechbrain_recipes.md is written and the outcomes are
counted.
"""

import argparse
import copy
import io
import json
import re
import sys
import tempfile
from collections import Counter
from functools import cache, partial
from pathlib import Path

import ruamel.yaml
import speechbrain
import torch
import transformers
from common import random_scores
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.Branchformer import (
    BranchformerEncoder,
)
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    TransformerEncoder,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.wav2vec import (
    EncoderWrapper,
    W2VLatentExtractor,
    W2VTargetQuantiser,
)
from speechbrain.nnet.attention import RelPosMHAXL

import sb_prune
from sb_prune.export.yaml_nodes import tag_of
from sb_prune.learn.fitting import fit_plan
from sb_prune.support.outputs import first_tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tiny_whisper import write_tiny_whisper  # noqa: E402

FOUND = HERE / "speechbrain_yamls.json"
TABLE = HERE.parents[1] / "docs/speechbrain_recipes.md"

LAYERS = 2  # at most; more of the same show nothing new
TOLERANCE = 1e-5
SPARSITY = 0.5  # of a random plan, among what can go
LENGTHS = torch.tensor([1.0, 0.6])
FRAMES, TOKENS, SAMPLES = 128, 7, 8000

DEPTHS = (
    "num_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "enc_num_layers",
    "dec_num_layers",
)
STACKS = {
    ConformerEncoder: "conformer_structures",
    BranchformerEncoder: "branchformer_structures",
    TransformerEncoder: "transformer_structures",
    TransformerDecoder: "decoder_structures",
}
LOBES = {
    "Wav2Vec2": "Wav2Vec2",
    "Wav2Vec2Pretrain": "Wav2Vec2",
    "HuBERT": "Hubert",
    "WavLM": "WavLM",
    "Whisper": "Whisper",
}
# Classes of SpeechBrain that hold a stack of layers or a front-end.
HOLDERS = (
    "CNNTransformerSE",
    "ConformerEncoder",
    "ConvolutionFrontEnd",
    "EncoderWrapper",
    "FastSpeech2",
    "FastSpeech2WithAlignment",
    "SBConformerEncoderBlock",
    "SBTransformerBlock",
    "SBTransformerBlock_wnormandskip",
    "TransformerASR",
    "TransformerEncoder",
    "TransformerG2P",
    "TransformerLM",
    "TransformerST",
    "W2VLatentExtractor",
    "W2VTargetQuantiser",
)
UNKNOWN = ("W2VBert",)  # encoders that nothing here declares yet
OUTCOMES = ("exact", "inexact", "refused", "fails", "not built")

INTRODUCTION = """\
# SpeechBrain's own recipes

What of the models in the YAMLs of SpeechBrain's own recipes can be declared
and cut: SpeechBrain {speechbrain}, {files} YAMLs, {declarations} modules,
{exact} of them exact. *Exact*: masked by a random plan that takes half of the
parameters that can go, the module computes what it computes once cut to that
plan; the largest difference of any, relative to its largest output, is
{largest:.0e}.
*Refused*: declaring it raises an error that says why. `Transformer: conformer`
is the entry `Transformer` of the YAML, as `sb_prune.conformer_structures`
declares it; it is exact where nothing else is said.

The modules have the widths of the YAML and at most two layers; Hugging Face
encoders are tiny ones with random weights. The table is made by
`python tests/benchmarks/speechbrain_yamls.py CHECKOUT` from a checkout of
SpeechBrain.
"""

# ------------------------------------------------------------------- the YAML


def modules_of(path):
    """The modules of a recipe's YAML that may have structures.

    Arguments
    ---------
    path : Path

    Returns
    -------
    dict
        Key -> module, built on its own; the error where it cannot be built.
        Empty for a file without `modules`, which other YAMLs include.
    """
    document = _resolved(path)
    if "modules" not in document:
        return {}
    found = {}
    for key, node in _nodes(document).items():
        try:
            found[key] = _build(node)
        except Exception as error:  # of any kind: the YAML is not ours
            found[key] = error
    return found


def _resolved(path):
    """The document, placeholders filled and references resolved."""
    with open(path, encoding="utf-8") as file:
        placeholders = _placeholders(ruamel.yaml.YAML().load(file))
    with open(path, encoding="utf-8") as file:
        resolved = resolve_references(file, placeholders)
    return ruamel.yaml.YAML().load(resolved) or {}


def _placeholders(node):
    """Values of a mapping that its user is to write, as overrides."""
    found = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        if tag_of(value) == "!PLACEHOLDER":
            found[key] = "placeholder"
        elif isinstance(value, dict) and not tag_of(value):
            found |= {key: inside} if (inside := _placeholders(value)) else {}
    return found


def _nodes(document):
    """Key -> node of each wanted module that lies inside no other."""
    found = {}
    for key, node in _entries(document):
        if _class_of(node) in (*HOLDERS, *LOBES, *UNKNOWN):
            if not any(node is other for other in found.values()):
                found[key] = node
    inside = [id(n) for node in found.values() for n in _below(node)]
    return {key: node for key, node in found.items() if id(node) not in inside}


def _entries(document):
    """(key, node) of a document and of plain mappings in it."""
    for key, node in document.items():
        yield str(key), node
        if isinstance(node, dict) and not tag_of(node):
            yield from _entries(node)


def _below(node):
    """All mappings inside a node."""
    values = node.values() if isinstance(node, dict) else node
    for value in values if isinstance(node, (dict, list)) else ():
        if isinstance(value, dict):
            yield value
        yield from _below(value)


def _class_of(node):
    """Name of the class of SpeechBrain that a node makes, or nothing."""
    tag = tag_of(node)
    if not tag.startswith("!new:speechbrain."):
        return ""
    module, _, name = tag.rpartition(".")
    # what gives inference the encoder of a TransformerASR is that Transformer
    is_view = name == "EncoderWrapper" and module.endswith("TransformerASR")
    return "" if is_view else name


def _build(node):
    """The module of a node, shallow; Hugging Face encoders tiny."""
    name = _class_of(node)
    if name in UNKNOWN:
        raise NotImplementedError(f"{name}: nothing declares such encoders yet")
    node = copy.deepcopy(node)
    for part in [node, *_below(node)]:
        for key in set(DEPTHS) & part.keys():
            part[key] = min(part[key], LAYERS)
    if name in LOBES:
        for key in ("device", "device_map"):  # ours is the CPU
            node.pop(key, None)
        node["source"] = _hugging_face(LOBES[name], str(node["source"]))
        node["save_path"] = node["source"]
    text = io.StringIO()
    ruamel.yaml.YAML().dump({"module": node}, text)
    torch.manual_seed(0)
    module = load_hyperpyyaml(text.getvalue())["module"]
    _redraw_(module)
    return module.eval()


def _redraw_(module):
    """Norms and biases start at 1 and 0, where mistakes would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


def _hugging_face(family, source):
    """A folder with a tiny encoder, its norms where the source has them."""
    if family == "Whisper":
        return _tiny_whisper()
    return _tiny(family, bool(re.search("large|xls-?r", source, re.I)))


@cache
def _tiny_whisper():
    folder = tempfile.mkdtemp()
    write_tiny_whisper(folder)
    return folder


@cache
def _tiny(family, is_large):
    folder = tempfile.mkdtemp()
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[8] * 7,
        conv_bias=is_large,
        feat_extract_norm="layer" if is_large else "group",
        do_stable_layer_norm=is_large,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    model = getattr(transformers, f"{family}Model")(config)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- what is cut


def cases_of(modules):
    """What is tried with the modules of one YAML.

    Arguments
    ---------
    modules : dict
        Key -> module.

    Returns
    -------
    list of tuple
        (name, structures, root, function that runs the root).
    """
    found = []
    extractor, wrapper, quantiser, asr = (
        _first(modules, kind)
        for kind in (
            W2VLatentExtractor,
            EncoderWrapper,
            W2VTargetQuantiser,
            TransformerASR,
        )
    )
    for key, module in modules.items():
        if isinstance(module, ConvolutionFrontEnd):
            root = torch.nn.ModuleDict({key: module, **asr})
            run = partial(_run_front_end, key, next(iter(asr), None))
            found.append((key, "front_end_structures", root, run))
        elif type(module).__name__ == "Whisper":
            found.append((key, "whisper_structures", module, _run_whisper))
        elif hasattr(module, "auto_class"):  # a Hugging Face lobe
            found.append((key, "wav2vec2_structures", module, _run_lobe))
        elif key in extractor:
            root = torch.nn.ModuleDict({**extractor, **wrapper, **quantiser})
            name = " + ".join(root)
            found.append((name, "wav2vec2_structures", root, _run_in_series))
        elif key not in wrapper or not extractor:
            relative = any(isinstance(m, RelPosMHAXL) for m in module.modules())
            for kind, structures in STACKS.items():
                if any(isinstance(m, kind) for m in module.modules()):
                    run = partial(_run_stacks, kind, relative)
                    found.append((key, structures, module, run))
    return found


def _first(modules, kind):
    """{key: module} of the first of a class; empty if there is none."""
    found = [(k, m) for k, m in modules.items() if isinstance(m, kind)]
    return dict(found[:1])


def _run_stacks(kind, relative, root):
    """What every stack of a class makes of random input, one after another."""
    outputs = []
    for module in root.modules():
        if isinstance(module, kind):
            outputs.append(_run_stack(module, relative).flatten())
    return torch.cat(outputs)


def _run_stack(stack, relative):
    width = stack.norm.norm.weight.numel()
    torch.manual_seed(0)
    x = torch.randn(2, FRAMES, width)
    if isinstance(stack, TransformerDecoder):
        tokens = torch.randn(2, TOKENS, width)
        later = torch.ones(TOKENS, TOKENS).triu(1).bool()
        return first_tensor(stack(tokens, x, tgt_mask=later))
    padded = torch.arange(FRAMES) >= (LENGTHS * FRAMES)[:, None]
    positions = torch.randn(1, 2 * FRAMES - 1, width) if relative else None
    output = stack(x, src_key_padding_mask=padded, pos_embs=positions)
    return first_tensor(output)


def _run_front_end(front_end, transformer, root):
    torch.manual_seed(0)
    features = torch.randn(2, FRAMES, root[front_end].input_shape[2])
    return root[transformer].encode(root[front_end](features), LENGTHS)


def _waveform():
    torch.manual_seed(0)
    return torch.randn(2, SAMPLES)


def _run_lobe(lobe):
    if hasattr(lobe.model, "quantizer"):  # pre-training reads more
        return lobe.model(_waveform())[0]
    return first_tensor(lobe(_waveform(), LENGTHS))


def _run_whisper(lobe):
    """Encoder and, if it is there, decoder."""
    tokens = torch.full((2, TOKENS), lobe.model.config.decoder_start_token_id)
    if lobe.encoder_only:
        tokens = None
    outputs = lobe(_waveform(), tokens)
    if torch.is_tensor(outputs):
        return outputs
    return torch.cat([output.flatten() for output in outputs[:2]])


def _run_in_series(root):
    extractor, wrapper, *quantiser = root.values()
    latents = extractor(_waveform())
    for reader in quantiser:  # of the loss; in evaluation it draws nothing
        reader(latents)
    return wrapper(latents, LENGTHS)["embeddings"]


def outcome_of(structures, root, run):
    """Declares, masks and cuts a copy of a module.

    Arguments
    ---------
    structures : callable
        Module -> Declaration.
    root : torch.nn.Module
    run : callable
        Module -> output.

    Returns
    -------
    (str, str)
        "exact" or "inexact", and by how much masked and cut model differ;
        "refused", what was said, and what comes out of the kinds that the
        error tells to write; "fails", and how.
    """
    try:
        return _exactness(structures, copy.deepcopy(root), run)
    except _Refusal as error:
        said = _first_sentence(error)
        kinds = re.search(r"kinds: \[([\w, ]+)\]$", str(error))
        if kinds:
            fewer = partial(structures, kinds=kinds[1].split(", "))
            outcome, _ = outcome_of(fewer, root, run)
            said += f"; {outcome} with {kinds[0]}"
        return "refused", said
    except Exception as error:  # no refusal: a defect
        return "fails", f"{type(error).__name__}: {_first_sentence(error)}"


class _Refusal(ValueError):
    """What declaring a module said."""


@torch.no_grad()
def _exactness(structures, root, run):
    try:
        declaration = structures(root)
    except ValueError as error:
        raise _Refusal(error) from error
    groups = sb_prune.ParameterBudget(0.01).groups(declaration)
    scores = random_scores(declaration, seed=0)
    nothing = torch.zeros(len(declaration.structures)).double()
    can_go = 1 - float(groups[0].cost.of_kept(nothing)) / groups[0].dense
    plan = fit_plan(declaration, groups, scores, [SPARSITY * can_go])
    sb_prune.attach_(declaration).set_(plan.values(declaration))
    masked = run(root)
    sb_prune.detach_(root)
    sb_prune.cut_(declaration, plan)
    scale = masked.abs().max().clamp(1)
    difference = (masked - run(root)).abs().max() / scale
    word = "exact" if difference <= TOLERANCE else "inexact"
    return word, f"{difference:.0e}"


def _first_sentence(error):
    text = " ".join(str(error).split())
    return re.split(r"; |(?<!\bcf)\. ", text)[0][:200]


def measure(checkout):
    """Every YAML of a checkout that has modules to cut.

    Arguments
    ---------
    checkout : Path
        Of SpeechBrain.

    Returns
    -------
    dict
        YAML, below `recipes` -> list of [module, structures, outcome, what was
        said].
    """
    recipes = Path(checkout) / "recipes"
    paths = sorted(recipes.rglob("*.yaml"))
    if not paths:
        sys.exit(f"{recipes} holds no YAML; name a checkout of SpeechBrain")
    found = {str(path.relative_to(recipes)): _results(path) for path in paths}
    return {name: results for name, results in found.items() if results}


def _results(path):
    try:
        modules = modules_of(path)
    except Exception as error:  # of any kind: the YAML is not ours
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in (*HOLDERS, *LOBES, *UNKNOWN)):
            return []  # nothing in it would have been built
        return [["the YAML", "", "not built", _first_sentence(error)]]
    errors = {k: e for k, e in modules.items() if isinstance(e, Exception)}
    results = [
        [key, "", "not built", _first_sentence(error)]
        for key, error in errors.items()
    ]
    built = {k: m for k, m in modules.items() if k not in errors}
    for key, structures, root, run in cases_of(built):
        tried = outcome_of(getattr(sb_prune, structures), root, run)
        results.append([key, structures, *tried])
    return results


# ------------------------------------------------------------------ the table


def table_of(found):
    """What was found, in Markdown.

    Arguments
    ---------
    found : dict
        With the `speechbrain` whose classes were built, and `yamls` as
        `measure` returns them.

    Returns
    -------
    str
    """
    reasons, rows = {}, {}
    for name, results in found["yamls"].items():
        recipe, _, file = name.rpartition("/")
        cell = ", ".join(_shown(result, reasons) for result in results)
        recipe = recipe.removesuffix("/hparams")
        rows.setdefault((recipe, cell), []).append(file.removesuffix(".yaml"))
    lines = [INTRODUCTION.format(**found, **count(found["yamls"])).rstrip(), ""]
    lines += ["| recipe | YAML | module: structures |", "|:--|:--|:--|"]
    lines += [
        f"| {recipe} | {', '.join(files)} | {cell} |"
        for (recipe, cell), files in rows.items()
    ]
    lines += ["", "What is not exact, and why:", ""]
    lines += [f"{number}. {why}" for why, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _shown(result, reasons):
    """One module in a row; why it is not exact stands below the table."""
    key, structures, outcome, said = result
    name = f"{key}: {structures.removesuffix('_structures')}".rstrip(": ")
    if outcome == "exact":
        return name
    number = reasons.setdefault(said, len(reasons) + 1)
    return f"{name} **{outcome}** ({number})"


def count(yamls):
    """How many YAMLs there are, and how many modules of each outcome."""
    results = [result for results in yamls.values() for result in results]
    outcomes = Counter(outcome for _, _, outcome, _ in results)
    exact = [
        float(said) for _, _, outcome, said in results if outcome == "exact"
    ]
    return {
        "files": len(yamls),
        "declarations": len(results),
        **{o.replace(" ", "_"): outcomes[o] for o in OUTCOMES},
        "largest": max(exact, default=0.0),
    }


def main(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", help="of SpeechBrain")
    parser.add_argument("--full", action="store_true", help="changes nothing")
    checkout = parser.parse_args(arguments).checkout
    torch.set_num_threads(1)
    if checkout:
        version = speechbrain.__version__
        found = {"speechbrain": version, "yamls": measure(checkout)}
        FOUND.write_text(_compact(found), encoding="utf-8")
    found = json.loads(FOUND.read_text(encoding="utf-8"))
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table_of(found), encoding="utf-8")
    print(json.dumps(count(found["yamls"])), flush=True)


def _compact(found):
    """As JSON, a line for each module."""
    text = json.dumps(found, indent=1)
    return re.sub(r'\[\s+("[^\]]*")\s+\]', _on_one_line, text) + "\n"


def _on_one_line(match):
    return "[" + re.sub(r"\n\s+", " ", match[1]) + "]"


if __name__ == "__main__":
    main()
