"""Pure mathematics of positions: no modules, no parameters."""
