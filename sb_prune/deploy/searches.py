"""What of SpeechBrain's searches a deployed model does as well."""

from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.seq2seq import S2SBeamSearcher

from sb_prune.deploy.runtime.settings import DeployError


def check_search(search, greedy, beam):
    """Refuses what the runtime cannot search as SpeechBrain does.

    Arguments
    ---------
    search : S2SBaseSearcher
    greedy, beam : type
        Classes of it that can be deployed.

    Raises
    ------
    DeployError
        If it is of another class, or has an option or a scorer that cannot be
        deployed.
    """
    kind = type(search)
    if kind not in (greedy, beam):
        raise DeployError(
            f"decoder: {kind.__name__} cannot be deployed; only "
            f"{greedy.__name__} and {beam.__name__} can"
        )
    if kind is beam:
        _check_beam(search)
    elif search.temperature:
        raise DeployError(
            f"decoder: temperature: {search.temperature}; only a greedy "
            "search with temperature 0 can be deployed"
        )


def _check_beam(search):
    for option in ("using_max_attn_shift", "return_topk"):
        if getattr(search, option):
            raise DeployError(f"decoder: {option}: True cannot be deployed")
    used = scorers_of(search)
    has_ctc = isinstance(search, S2STransformerBeamSearcher)
    others = used.keys() - {"ctc" if has_ctc else None}
    if others:
        raise DeployError(
            f"scorer: {', '.join(sorted(others))} cannot be deployed; leave it "
            "out of hyperparams.yaml, and score the model again without it"
        )
    if "ctc" not in used:
        return
    if used["ctc"].ctc_window_size:
        raise DeployError("ctc_window_size: only 0 can be deployed")
    if search.scorer.weights["ctc"] == 1:  # SpeechBrain adds scores up twice
        raise DeployError(
            "scorer: ctc: 1.0 cannot be deployed; write less, or decode with "
            "EncoderASR and ctc_greedy_decode"
        )


def scorers_of(search):
    """Scorers of a beam search.

    Arguments
    ---------
    search : S2SBeamSearcher

    Returns
    -------
    dict
        Name -> scorer.
    """
    if search.scorer is None:
        return {}
    return {**search.scorer.full_scorers, **search.scorer.partial_scorers}


def beam_of(search):
    """Settings of a beam search for the runtime.

    Arguments
    ---------
    search : S2SBaseSearcher

    Returns
    -------
    dict or None
        None if the search is greedy.
    """
    if not isinstance(search, S2SBeamSearcher):
        return None
    scorer, ctc = search.scorer, scorers_of(search).get("ctc")
    threshold = search.eos_threshold if search.using_eos_threshold else None
    settings = {
        "size": search.beam_size,
        "temperature": search.temperature,
        "by_length": search.length_normalization,
        "threshold": threshold,
        "ctc": None,
    }
    if ctc is not None:
        is_partial = "ctc" in scorer.partial_scorers
        scored = int(search.beam_size * scorer.scorer_beam_scale)
        settings["ctc"] = {
            "blank": ctc.blank_index,
            "weight": scorer.weights["ctc"],
            "candidates": max(1, scored) if is_partial else None,
        }
    return settings
