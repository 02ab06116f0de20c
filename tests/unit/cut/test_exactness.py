"""What masked and cut model are compared by."""

import math

import torch

from sb_prune import cut_, front_end_structures
from sb_prune.cut.exactness import first_outputs, largest_difference
from sb_prune.cut.masking import attach_, detach_


def test_cut_outputs_are_compared_through_what_reads_them(
    make_front_end, encode_features, random_plan
):
    root = make_front_end()
    declaration = front_end_structures(root)
    modules = [root.get_submodule(name) for name in declaration.scope]

    def outputs():
        return first_outputs(modules, lambda: encode_features(root))

    plan = random_plan(declaration)
    with torch.no_grad():
        attach_(declaration).set_(plan.values(declaration))
        masked = outputs()
        detach_(root)
        dense = outputs()
        cut_(declaration, plan)
        cut = outputs()
        assert masked[0].shape != cut[0].shape
        assert largest_difference(masked, cut) <= 1e-5
        assert largest_difference(dense, cut) > 0.1
        modules[1].bias[0] += 3
        assert abs(largest_difference(masked, outputs()) - 3) < 1e-5


def test_the_first_call_counts():
    module = torch.nn.Identity()

    def forward(last):
        for value in (1.0, last):
            module((torch.tensor(value), None))

    before, after = (
        first_outputs([module], lambda last=last: forward(last))
        for last in (2.0, 3.0)
    )
    assert largest_difference(before, after) == 0


def test_nothing_to_compare_is_no_number():
    quiet = first_outputs([torch.nn.Identity()], lambda: None)
    assert math.isnan(largest_difference(quiet, quiet))
