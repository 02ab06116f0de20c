"""What a new architecture needs: this file, and a row of BUILDS.

For users it would be `sb_prune/architectures/toy.py`, and one line in
`sb_prune/__init__.py` would make `sb_prune.toy_structures` public.
"""

from torch import nn

from sb_prune.architectures.feed_forward import two_linears
from sb_prune.architectures.stacks import Layer, declare

KINDS = ("layers", "ffn_modules", "ffn_units")


class ToyLayer(nn.Module):
    """x + ffn(norm(x))"""

    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )

    def forward(self, x):
        return x + self.ffn(self.norm(x))


class ToyEncoder(nn.Module):
    """A projection, then layers."""

    def __init__(self, inputs, layers, width=16, hidden=32, dropout=0.0):
        super().__init__()
        self.inputs = nn.Linear(inputs, width)
        self.stack = ToyStack(layers, width, hidden, dropout)

    def forward(self, x):
        return self.stack(self.inputs(x))


class ToyStack(nn.Module):
    """What `toy_structures` looks for."""

    def __init__(self, layers, width, hidden, dropout):
        super().__init__()
        self.layers = nn.ModuleList(
            ToyLayer(width, hidden, dropout) for _ in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def toy_structures(root, kinds=None, only=""):
    """Declares what can be cut in every `ToyStack` below a module."""
    return declare(root, {ToyStack: toy_layer}, KINDS, kinds, only)


def toy_layer(name, layer):
    """A ToyLayer: its norm feeds the FFN alone, and goes with it."""
    parts = ("0", "1", "3")  # Linear, activation, Linear
    ffn = two_linears(f"{name}.ffn", layer.ffn, parts, norm=f"{name}.norm")
    return Layer(parts=(ffn,))
