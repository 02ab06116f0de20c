"""One training step of Conformer-small: dense, masked, activation-masked.

    python tests/benchmarks/mask_overhead.py [--full]

The three steps alternate within one run, so that a busy machine slows all of
them alike. Batch 4 x 10 s. Shapes: B utterances, T frames, d model width.
"""

import time

import torch
from common import conformer, run

from sb_prune import (
    HardConcrete,
    LinearSchedule,
    ParameterBudget,
    Pruner,
    conformer_structures,
)

BATCH, FRAMES = 4, 250  # 10 s at 25 frames per second
WARM_UP = 2  # rounds


class Dense:
    """A plain training step; the others add to it."""

    def __init__(self, layers):
        self.model = conformer(layers).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def step(self, source):
        """Forward, backward and Adam on source (B, T, d)."""
        self.model.encode(source).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Masked(Dense):
    """As a recipe trains with sb_prune: gates sampled and learnt each step."""

    def __init__(self, layers):
        super().__init__(layers)
        self.pruner = Pruner(
            conformer_structures(self.model),
            ParameterBudget(0.5),
            LinearSchedule(steps=1),
            HardConcrete(straight_through=True),
        )
        self.pruner.step = 1  # the schedule has ended: half the gates close
        self.pruner.attach_()

    def step(self, source):
        """The dense step between `sample_` and `step_`."""
        self.pruner.sample_()
        super().step(source)
        self.pruner.step_()


class ActivationMasked(Dense):
    """What public code does: gates multiply activations in hooks."""

    def __init__(self, layers):
        super().__init__(layers)
        self.gates = []
        for layer in self.model.encoder.layers:
            for ffn in (layer.ffn_module1, layer.ffn_module2):
                self._gate(ffn[1].ffn[3])
                self._gate(ffn, output=True)
            self._gate(layer.mha_layer.out_proj, entries=36)
            self._gate(layer.mha_layer.out_proj, output=True)
            self._gate(layer.convolution_module.after_conv[2])
            self._gate(layer.convolution_module, output=True)

    def _gate(self, module, output=False, entries=1):
        units = 1 if output else module.in_features // entries
        gate = (torch.rand(units) < 0.5).float().requires_grad_()
        self.gates.append(gate)

        def multiply(value):
            return value * gate.repeat_interleave(entries)

        if output:
            module.register_forward_hook(lambda m, i, out: out * gate)
        else:
            module.register_forward_pre_hook(lambda m, i: multiply(i[0]))

    def step(self, source):
        """The dense step; gates collect gradients."""
        super().step(source)
        for gate in self.gates:
            gate.grad = None


def measure(full):
    """Medians of alternating training steps, in seconds."""
    repeats = 40 if full else 9
    torch.manual_seed(0)
    source = torch.randn(BATCH, FRAMES, 144)
    rivals = [kind(layers=12) for kind in (Dense, Masked, ActivationMasked)]
    times = {rival: [] for rival in rivals}
    for _ in range(repeats + WARM_UP):
        for rival in rivals:
            start = time.perf_counter()
            rival.step(source)
            times[rival].append(time.perf_counter() - start)
        rivals.reverse()  # nobody always runs in the wake of the same one
    spent = [torch.tensor(t[WARM_UP:]) for t in times.values()]
    dense, masked, activation = spent
    return {
        "dense_s": dense.median().item(),
        "masked_s": masked.median().item(),
        "activation_s": activation.median().item(),
        "ratio": (masked / dense).median().item(),  # round by round
        "activation_ratio": (activation / dense).median().item(),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    run(measure)
