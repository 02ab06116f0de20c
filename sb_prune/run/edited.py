"""The modules of a recipe that a run edits, and what was done to them."""

from functools import partial

from sb_prune.architectures.whole_layers import layer_structures
from sb_prune.cut.edits import Cut, folded, outline
from sb_prune.cut.surgery import cut_
from sb_prune.declare.roots import entries_of, root_of
from sb_prune.declare.structure import below
from sb_prune.export.encoders import past_of_lobe
from sb_prune.support.parallel import unwrap


class Edited:
    """The modules of a recipe that a run edits.

    Arguments
    ---------
    modules : dict
        Entry -> module of the recipe.
    module : str or list of str
        The entry, or several of them.

    Attributes
    ----------
    root : torch.nn.Module
        The module, or a ModuleDict of several.
    """

    def __init__(self, modules, module):
        self.module = module
        self._parts = {e: unwrap(modules[e]) for e in entries_of(module)}
        self.root = root_of(self._parts, module)
        self._known = set(modules)
        self._edits = []
        self._dense = {}  # entry -> the original module, on the meta device
        for entry, part in self._parts.items():
            edits, dense = past_of_lobe(part)
            self._edits += [e.within(self._path(entry)) for e in edits]
            if edits:
                self._dense[entry] = dense

    def _path(self, entry):
        """Path of an entry from the root."""
        return "" if isinstance(self.module, str) else entry

    @property
    def edits(self):
        """What was done to the stock modules, as an export lists it."""
        return folded(self._edits, self.root)

    def adopt_(self, history, told):
        """Takes over what an earlier run did to the modules, without weights.

        Modules that the recipe made in an edited shape already, from a lobe's
        `source`, have had the first edits, or all of them; they get the rest.

        Arguments
        ---------
        history : History
        told : str
            Key and value of the YAML that name it, for error messages.

        Raises
        ------
        ValueError
            If it is that of other modules.
        """
        path, live = self._place_of(history.module, told)
        for edit in history.edits[_edits_of(history, live, told) :]:
            edit.apply_(live)
        others = [e for e in self._edits if not below(e.module, path)]
        self._edits = others + [edit.within(path) for edit in history.edits]
        dense, several = history.original(), not isinstance(history.module, str)
        for entry in entries_of(history.module):
            self._dense[entry] = dense[entry] if several else dense

    def _place_of(self, module, told):
        """Path from the root, and the live module, of what was edited."""
        if module == self.module:
            return "", self.root
        if isinstance(module, str) and module in self._parts:
            return self._path(module), self._parts[module]
        remedy = "write an export of a recipe with the same modules"
        if all(entry in self._known for entry in entries_of(module)):
            remedy = f"write module: {module}"
        raise ValueError(
            f"{told}: it is {module!r} that was pruned there, and "
            f"{self.module!r} that `module` names; {remedy}"
        )

    def cut_(self, declaration, structures, plan):
        """Cuts the modules, and records it.

        Arguments
        ---------
        declaration : Declaration
            Of the modules as they are.
        structures : callable
            The function that made it.
        plan : Plan
        """
        self.remember_dense_()
        cut_(declaration, plan)
        self.record_(structures, plan)

    def record_(self, structures, plan):
        """Records a cut that the modules have had."""
        self._edits.append(Cut(structures=structures, plan=plan.to_dict()))

    def remember_dense_(self):
        """Remembers the shapes of modules that were not cut so far."""
        for entry, part in self._parts.items():
            if entry not in self._dense:
                self._dense[entry] = outline(part)

    def original(self, structures):
        """Declares the original dense modules, which targets count from.

        Arguments
        ---------
        structures : callable
            Module -> Declaration, as for the modules that are left.

        Returns
        -------
        Declaration or None
            None if the modules are the original ones.
        """
        if not any(isinstance(edit, Cut) for edit in self._edits):
            return None
        parts = {e: self._dense.get(e, p) for e, p in self._parts.items()}
        return structures(root_of(parts, self.module))


def whole_layers(structures):
    """The function that declares the whole layers that another one finds."""
    return partial(layer_structures, structures=structures)


def shapes(module):
    """Name -> shape of every tensor in the state dict of a module."""
    return {n: tuple(t.shape) for n, t in module.state_dict().items()}


def _edits_of(history, live, told):
    """How many of the edits a module has had, by its shapes."""
    known = shapes(live)
    for count in range(len(history.edits), -1, -1):
        if shapes(history.rebuild(count)) == known:
            return count
    _refuse(history.stock(), live, told)


def _refuse(stock, live, told):
    """Refuses the history of a module with other tensors."""
    theirs, ours = shapes(stock), shapes(live)
    for name in [*theirs, *ours]:
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"{told}: it was made from another model: {name} has the "
                f"shape {theirs.get(name, 'of no tensor')} there (a "
                f"{type(stock).__name__}) and {ours.get(name, 'of no tensor')} "
                f"in this recipe (a {type(live).__name__}); write the values "
                "of the YAML it was made with"
            )
