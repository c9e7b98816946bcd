"""Whether what a kernel promises its compiler is true: `tl.multiple_of`, `tl.max_contiguous`."""

import numpy as np


def set_attr(handle, name, values):
    """In place of the interpreter's, which only notes a promise."""
    for axis, value in enumerate(values):
        runs = _runs(handle.data, axis, value)
        neighbors = (runs == runs[..., :1] + np.arange(value)).all()
        if name == "tt.contiguity":
            assert neighbors, f"{handle.data} has no runs of {value} along axis {axis}"
        if name == "tt.divisibility":  # of all numbers, or of those with which runs begin
            begins = runs[..., 0] if neighbors else runs
            assert not (begins % value).any(), f"{handle.data}: no multiples of {value}, {axis=}"
    handle.attr[name] = values


def _runs(data, axis, size):
    data = np.moveaxis(np.atleast_1d(data), axis, -1)
    return data.reshape(*data.shape[:-1], -1, size)
