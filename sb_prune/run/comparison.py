"""Compares what the modules of a recipe compute before and after a cut."""

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

from sb_prune.cut.exactness import (
    first_outputs,
    is_rounding,
    largest_difference,
)
from sb_prune.support.random_state import generators_untouched

logger = get_logger(__name__)


def difference_around(cut, brain, declaration, batch):
    """Cuts a masked model, and compares it before and after.

    Arguments
    ---------
    cut : callable
        Cuts the model. Takes no arguments.
    brain : Brain
        Of the recipe, with the modules in eval mode.
    declaration : Declaration
        Of what is masked in these.
    batch : object
        A batch for `compute_forward`.

    Returns
    -------
    float
        Largest difference of an output of the modules in the scope.
    """
    before = _outputs(brain, declaration, batch)
    cut()
    after = _outputs(brain, declaration, batch)
    difference = largest_difference(before, after)
    text = f"Masked and cut model differ by at most {difference:.1e}"
    if is_rounding(before, after):
        logger.info(f"{text}: rounding")
    else:
        logger.warning(f"{text}: more than rounding")
    return difference


def _outputs(brain, declaration, batch):
    """Outputs of the modules in the scope for a batch."""
    root = declaration.root
    scope = [root.get_submodule(name) for name in declaration.scope]
    with generators_untouched(), torch.no_grad():
        return first_outputs(
            scope, lambda: brain.compute_forward(batch, sb.Stage.VALID)
        )
