"""Stock modules in the shapes that surgery leaves, where they cannot run so."""
