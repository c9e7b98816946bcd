"""Pictures of what position does, drawn with matplotlib: `pip install "posenc[viz]"`.

Functions of one panel take `ax=` and return the `Axes`; those of several take `figure=`, a `Figure`
or `SubFigure` without axes, and return it. Without it they make a new figure with pyplot. Nothing
is shown or saved, and no setting of matplotlib changes. All input is checked before anything is
drawn. Color maps are even and safe for color-blind eyes.
"""

from posenc.analysis.plot.attention import plot_attention
from posenc.analysis.plot.bias import plot_bias
from posenc.analysis.plot.distance import plot_distance
from posenc.analysis.plot.parts import plot_parts
from posenc.analysis.plot.rollout import plot_rollout
from posenc.analysis.plot.similarity import plot_similarity

__all__ = [
    "plot_attention",
    "plot_bias",
    "plot_distance",
    "plot_parts",
    "plot_rollout",
    "plot_similarity",
]
