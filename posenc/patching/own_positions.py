"""Position sources that a model has of its own, and what comes on top of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

ABSOLUTE = "absolute table"
RELATIVE = "relative bias"
ROTARY = "rotary embedding"

# What models call their position sources: the last part of a parameter's or module's name.
_OWN_PARAMETERS = {
    "pos_embed": ABSOLUTE,
    "pos_embed_y": ABSOLUTE,
    "pos_embed_x": ABSOLUTE,
    "pos_embed_win": ABSOLUTE,
    "pos_embed1": ABSOLUTE,
    "pos_embed2": ABSOLUTE,
    "pos_embed3": ABSOLUTE,
    "position_embedding_table": ABSOLUTE,
    "position_embeddings": ABSOLUTE,
    "positional_embedding": ABSOLUTE,
    "pos_embedding": ABSOLUTE,
    "relative_position_bias_table": RELATIVE,
    "rel_pos_h": RELATIVE,
    "rel_pos_w": RELATIVE,
    "attention_biases": RELATIVE,
}
_OWN_MODULES = {
    "rope": ROTARY,
    "rope_global": ROTARY,
    "rope_window": ROTARY,
    "rope_embeddings": ROTARY,
    "rotary_emb": ROTARY,
    "rel_pos": RELATIVE,
    "shared_rel_pos": RELATIVE,
    "rel_pos_bias": RELATIVE,
    "cpb_mlp": RELATIVE,
    "meta_mlp": RELATIVE,
}


def own_positions(backbone: nn.Module, hidden: str | None = None) -> tuple[str, ...]:
    """The position sources of a model itself, in words, such as "absolute table pos_embed"."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, _ in backbone.named_parameters():
        _note(found, name, _OWN_PARAMETERS)
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Identity):
            _note(found, name, _OWN_MODULES)
    return tuple(
        f"{kind} {last}"
        + (f" in {len(names)} modules" if len(names) > 1 else "")
        + (", hidden" if hidden in names else "")
        for (kind, last), names in found.items()
    )


def _note(found: dict[tuple[str, str], list[str]], name: str, kinds: dict[str, str]) -> None:
    last = name.rpartition(".")[2]
    # A module's own parameters have been noted with it.
    inside = {part for part in name.split(".")[:-1] if part in _OWN_MODULES or part == "posenc"}
    if last in kinds and not inside:
        found.setdefault((kinds[last], last), []).append(name)


def doubled_rotary(encodings: Mapping[str, nn.Module], own: tuple[str, ...]) -> tuple[str, ...]:
    """Says that encodings turn queries and keys which the model turns itself."""
    names = [name for name, e in encodings.items() if getattr(e, "kind", None) == "rotary"]
    if not names or not any(source.startswith(ROTARY) for source in own):
        return ()
    return (f"{' and '.join(names)} on top of the model's own rotary embedding: both act",)
