"""Feed-forward modules: two Linears with hidden units between them."""

from operator import attrgetter

from speechbrain.nnet.attention import PositionalwiseFeedForward

from sb_prune.architectures.activations import refused_activation
from sb_prune.architectures.indices import consecutive
from sb_prune.architectures.parts import (
    NotCut,
    Part,
    identity,
    same_length,
    uncut_operations,
    unless_gone,
    weight_operations,
    whole_linear,
)
from sb_prune.cut.surgery import Absent
from sb_prune.declare.structure import Slices, Structure


@unless_gone
def feed_forward(name, ffn, path=None, norm=None, steps=same_length):
    """Describes a feed-forward module of SpeechBrain and its hidden units.

    Arguments
    ---------
    name : str
        Module that is removed when all of it is cut.
    ffn : torch.nn.Module
        The PositionalwiseFeedForward.
    path : str, optional
        Name of `ffn`, if it lies below `name`.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    steps : callable
        frames -> number of steps that the module runs over.

    Returns
    -------
    Part, NotCut or None
        NotCut if ffn is of another class, None if it was removed by an earlier
        cut.
    """
    if not isinstance(ffn, PositionalwiseFeedForward):
        kinds = ("ffn_modules", "ffn_units")
        remedy, where = "ffn_type: regularFFN", path or name
        operations = uncut_operations(where, ffn, steps)
        return NotCut(where, type(ffn).__name__, kinds, remedy, operations)
    parts = ("ffn.0", "ffn.1", "ffn.3")
    return two_linears(name, ffn, parts, path, norm, steps)


@unless_gone
def two_linears(name, ffn, parts, path=None, norm=None, steps=same_length):
    """Describes two Linears with hidden units between them.

    Arguments
    ---------
    name : str
        Module that is removed when all of it is cut.
    ffn : torch.nn.Module
        The module that holds both Linears.
    parts : (str, str, str)
        Names inside it, in the order in which data flow: the first Linear, the
        activation, the second Linear.
    path : str, optional
        Name of `ffn`, if it lies below `name`.
    norm : str, optional
        Norm before the module, if nothing else reads it; removed with it.
    steps : callable
        frames -> number of steps that the module runs over.

    Returns
    -------
    Part or None
        None if it was removed by an earlier cut.
    """
    path = path or name
    inner, activation, outer = (attrgetter(part)(ffn) for part in parts)
    first, _, second = (f"{path}.{part}" for part in parts)
    each = consecutive(inner.out_features)
    units = Structure(
        name=f"{name}.units",
        kind="ffn_units",
        units=len(each),
        masks=(Slices(f"{second}.weight", 1, each),),
        cuts=(
            Slices(f"{first}.weight", 0, each),
            Slices(f"{first}.bias", 0, each),
            Slices(f"{second}.weight", 1, each),
        ),
    )
    module = Structure(
        name=name,
        kind="ffn_modules",
        units=1,
        masks=whole_linear(second, outer),
        removes=((name, Absent), *identity(norm)),
    )
    return Part(
        module,
        units,
        weight_operations(name, ffn, parts[::2], steps, path),
        refused=refused_activation("ffn_units", activation, len(each)),
    )
