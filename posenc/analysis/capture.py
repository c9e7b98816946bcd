"""What attention computes, recorded at the calls themselves, also where they are fused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from posenc.analysis.recorder import CapturedAttention, Recorder
from posenc.layout import TokenLayout
from posenc.patching.observe import observe_attention


@contextlib.contextmanager
def capture_attention(
    model: nn.Module, *, layout: TokenLayout | None = None
) -> Iterator[CapturedAttention]:
    """Records the attention of every forward inside the context, fused or not.

    All attention modules whose tokens have a known grid are recorded, patched or not. The outputs
    of the model, its gradients and the random state are bit for bit those without the context,
    and after it, also after an exception, the model is as it was. Each module keeps its latest
    forward; replays of activation checkpointing are not recorded. Copies and pickles that are
    made inside the context do not record.

    It costs the `N x N` matrices that fused attention avoids, and keeps them: `4 B heads N^2`
    bytes a module. Modules that are not patched compute their attention twice. Contexts may be
    nested, and folded models (`posenc.fold_biases`) are recorded too; inside the context, the model
    can be neither patched nor unpatched.

    Args:
        model: any model that `posenc.patch_model` could patch, or one that it has patched.
        layout: as for `patch_model`: needed for models outside timm that are not patched.

    Raises:
        ValueError: the model is compiled, or not known and not patched (with the reason).
        RuntimeError: in a forward: it runs under torch.compile, torch.export or a function
            transform, or its tokens are not those of its layout.

    Reference: Abnar and Zuidema 2020, arXiv 2005.00928, and Dosovitskiy et al. 2021, figure 7,
    need these weights.

    >>> import timm, torch
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    >>> with capture_attention(vit) as captured:
    ...     logits = vit(torch.zeros(1, 3, 32, 48))
    >>> {name: tuple(weights.shape) for name, weights in captured.attention.items()}
    {'blocks.0.attn': (1, 3, 7, 7), 'blocks.1.attn': (1, 3, 7, 7)}
    """
    captured = CapturedAttention()

    def recorder(name: str) -> Recorder:
        return Recorder(name, captured)

    with observe_attention(model, layout, recorder, "capture_attention") as watch:
        captured.left_out.update(watch.left_out)
        captured.own_grids.update(watch.own_grids)
        yield captured
