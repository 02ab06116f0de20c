"""What a spoken command means, as text that a decoder can learn.

One line has the scenario, the action and the entities, written as in SLURP's
own annotation:

    alarm set [time : seven am] [date : tomorrow]
"""

import re

NAME = r"([^\s\[\]]+)"
FILLER = r"([^\[\]]*[^\s\[\]])"
ENTITY = rf" \[{NAME} : {FILLER}\]"
COMMAND = re.compile(rf"{NAME} {NAME}((?:{ENTITY})*)")


def format_semantics(semantics):
    """Writes semantics as one line.

    Arguments
    ---------
    semantics : dict
        `scenario` and `action` are str, `entities` is a list of dict with
        `type` and `filler`; the form that SLURP's evaluation reads.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the line could not be read back, e.g. for a bracket in a filler.

    Example
    -------
    >>> entity = {"type": "time", "filler": "seven am"}
    >>> format_semantics(
    ...     {"scenario": "alarm", "action": "set", "entities": [entity]}
    ... )
    'alarm set [time : seven am]'
    """
    entities = (
        f" [{entity['type']} : {entity['filler']}]"
        for entity in semantics["entities"]
    )
    text = f"{semantics['scenario']} {semantics['action']}{''.join(entities)}"
    try:
        understood = parse_semantics(text)
    except ValueError:
        understood = None
    if understood != semantics:
        raise ValueError(f"{semantics} cannot be written as semantics")
    return text


def parse_semantics(text):
    """Reads semantics, the inverse of `format_semantics`.

    Arguments
    ---------
    text : str
        Such as a decoder's output.

    Returns
    -------
    dict
        With `scenario`, `action` and `entities`.

    Raises
    ------
    ValueError
        If the text has any other form.

    Example
    -------
    >>> parse_semantics("play music [music_genre : jazz]")["entities"]
    [{'type': 'music_genre', 'filler': 'jazz'}]
    """
    command = COMMAND.fullmatch(text)
    if command is None:
        raise ValueError(f"{text!r} is not 'scenario action [type : filler]'")
    scenario, action, entities = command.group(1, 2, 3)
    return {
        "scenario": scenario,
        "action": action,
        "entities": [
            {"type": kind, "filler": filler}
            for kind, filler in re.findall(ENTITY, entities)
        ],
    }
