"""Entries in the config.json of earlier formats; see `old_formats`.

1   up to version 0.1: the plan alone
2   in version 0.2: the plan and the kinds of its structures
"""

from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.architectures.wav2vec2 import KINDS
from sb_prune.architectures.whole_layers import ENDING, KIND
from sb_prune.cut.edits import ENTRY

PLAN_1 = "sb_prune_plan"  # key in config.json of format 1, with the plan alone
STUDENT = "sb_prune_student"  # key in that of a student of format 1 or 2
OLD_KEYS = (PLAN_1, STUDENT)


def old_entry(config):
    """Reads the entry of config.json of an earlier format.

    Arguments
    ---------
    config : dict
        Content of config.json.

    Returns
    -------
    dict or None
        With `plan` and `kinds`, or the `edits` of a student; None for a stock
        model.
    """
    if config.get(PLAN_1) is not None:
        plan = config[PLAN_1]
        return {"plan": plan, "kinds": _kinds_of(plan)}
    if config.get(STUDENT) is not None:
        return {"edits": [{"student": config[STUDENT]}]}
    return config.get(ENTRY)


def _kinds_of(plan):
    """Guesses the kinds with which a plan of format 1 was made, from names."""
    last = {f"{name.rpartition('.')[2]}_dims" for name in plan}
    inside = [kind for kind in INSIDE_HEADS if kind in last]
    whole = [KIND] if any(name.endswith(ENDING) for name in plan) else []
    return [*KINDS, *inside, *whole]
