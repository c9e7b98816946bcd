"""Attention modules of transformers, which ask a registry for the function that computes them.

A patched module reads its config through a view that names the function registered here. The
config itself stays: models share it, save it and build masks by it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Those whose masks mean what they mean in scaled_dot_product_attention.
IMPLEMENTATIONS = ("sdpa", "eager", None)


def refusal(module: Any) -> str | None:
    """Why the attention of a module cannot be replaced, None when it can."""
    code = getattr(type(module).forward, "__code__", None)
    if not {"ALL_ATTENTION_FUNCTIONS", "_attn_implementation"} <= set(
        getattr(code, "co_names", ())
    ):
        return (
            f"the forward of {type(module).__name__} does not ask transformers' "
            "AttentionInterface for its attention function (transformers 5 does)"
        )
    return _unknown_masks(module.config)


def members() -> dict[str, Any]:
    """Of the generated class; the forward stays."""
    from transformers import AttentionInterface

    AttentionInterface.register("posenc", attention_function)
    return {"config": property(_config_view, _set_config)}


def attention_function(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the registry calls for a patched module."""
    if not hasattr(module, "_posenc"):
        raise ValueError(
            f'attn_implementation="posenc" is for modules that posenc.patch_model patched, and '
            f'{type(module).__name__} was not: use "sdpa" or "eager"'
        )
    name, config = module._posenc.name, module.config
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        raise ValueError(
            f"posenc: {name} does not return attention weights: call the model with "
            "output_attentions=False"
        )
    if reason := _unknown_masks(vars(config)["config"]):
        raise ValueError(f"posenc: {name}: {reason}")
    out = module._attend(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=bool(kwargs.get("is_causal")),
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _unknown_masks(config: Any) -> str | None:
    implementation = config._attn_implementation
    if implementation in IMPLEMENTATIONS:
        return None
    return (
        f'attn_implementation="{implementation}" makes masks that posenc does not know: call '
        'model.set_attn_implementation("sdpa")'
    )


class _ConfigView:
    """A config that names posenc's attention function and is otherwise the module's own."""

    _attn_implementation = "posenc"

    def __init__(self, config: Any) -> None:
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _config_view(module: Any) -> _ConfigView:
    return _ConfigView(vars(module)["config"])


def _set_config(module: Any, config: Any) -> None:
    vars(module)["config"] = config
