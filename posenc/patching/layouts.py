"""The layout of a model's tokens at run time, learned without any token count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posenc._torch import NO_BACKWARD, backward_task
from posenc.layout import TokenLayout
from posenc.memo import is_transformed
from posenc.patching.replay import LastLayout, Replays, ThreadFlag

# From an embedding, its first argument and its result to the grid of its tokens.
SeenGrid = Callable[[Any, Any, Any], tuple[int, int]]


def grid_of_embedding(embedding: Any, image: Any, result: Any) -> tuple[int, int]:
    """Of timm's PatchEmbed and HybridEmbed."""
    if getattr(embedding, "output_fmt", None) == "NHWC":
        return result.shape[1], result.shape[2]
    return grid_of_pixels(embedding, tuple(image.shape[-2:]))


def grid_of_pixels(embedding: Any, image: tuple[int, int]) -> tuple[int, int]:
    """The grid that an embedding of timm gives for an image of this size."""
    projection = overlapping_projection(embedding)
    if projection is None:
        height, width = embedding.dynamic_feat_size(image)
        return height, width
    if embedding.dynamic_img_pad:  # to whole patches, whatever the stride
        sides = zip(image, embedding.patch_size, strict=True)
        image = tuple(-(-side // patch) * patch for side, patch in sides)
    return grid_of_convolution(projection, image)


def patch_size_of(embedding: Any) -> tuple[int, int] | None:
    """Height and width of a patch in pixels, None where the embedding does not tell."""
    if hasattr(embedding, "feat_ratio"):  # of a convolutional stem, times the patch
        size = embedding.feat_ratio(as_scalar=False)
    else:
        size = getattr(embedding, "patch_size", None)
    return (size, size) if isinstance(size, int) else size


def overlapping_projection(embedding: Any) -> nn.Conv2d | None:
    """The projection of a patch embedding that does not cut patches side by side, else None.

    timm divides an image by the patch size, so that what it says of such a grid may be wrong.
    """
    projection = getattr(embedding, "proj", None)
    of_features = hasattr(embedding, "feature_ratio")  # of HybridEmbed: no image comes there
    if not isinstance(projection, nn.Conv2d) or of_features:
        return None
    patch = tuple(embedding.patch_size)
    side_by_side = projection.stride == projection.kernel_size == patch
    return None if side_by_side and not any(_padding(projection)) else projection


def _padding(convolution: Any) -> tuple[int, int]:
    padding = convolution.padding
    return (0, 0) if padding == "valid" else padding


def grid_of_convolution(convolution: Any, size: Sequence[int]) -> tuple[int, int]:
    """The grid that a patch projection gives for an image, patches overlapping or not."""
    height, width = (
        (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for side, pad, dilation, kernel, stride in zip(
            size,
            _padding(convolution),
            convolution.dilation,
            convolution.kernel_size,
            convolution.stride,
            strict=True,
        )
    )
    return height, width


class LayoutSource(ABC):
    """Tells a site the layout of the tokens that it is about to see."""

    @abstractmethod
    def default(self) -> TokenLayout:
        """The layout that sizes new parameters."""

    def for_call(self, tokens: int) -> TokenLayout:
        """The layout of the tokens of this call, of which there are `tokens`."""
        return self.default()

    def latest(self) -> TokenLayout:
        """The layout of the last call, or else the default."""
        return self.default()


class GivenLayout(LayoutSource):
    """The layout that the user passed."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout

    def default(self) -> TokenLayout:
        """Always the same, until `set_layout`."""
        return self.layout


class CheckedLayout(GivenLayout):
    """One layout, which the embedding compares with each image that it sees.

    Args:
        layout: of the tokens.
        embedding: name of the module that sees the images.
    """

    def __init__(self, layout: TokenLayout, embedding: str) -> None:
        super().__init__(layout)
        self.embedding = embedding

    def see(self, height: int, width: int) -> None:
        """The embedding has seen an image of this grid.

        Raises:
            RuntimeError: it is another grid.
        """
        if (height, width) != self.layout.grid:
            seen = f"TokenLayout({height}, {width}, prefix={self.layout.prefix})"
            raise RuntimeError(
                f"posenc: {self.embedding} got images of {height}x{width} patches, but the layout "
                f"of the model is {self.layout}: pass patch_model the layout= of your images, or "
                f"call posenc.set_layout(model, {seen})"
            )


class EmbeddingLayout(LayoutSource):
    """The grid of a patch embedding that takes one image size, read at each call.

    So timm's `set_input_size` on a patched model is followed, and another embedding too.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone
        self._last = TokenLayout(1, 1)

    def default(self) -> TokenLayout:
        """The grid of the embedding, after the prefix tokens."""
        height, width = self.backbone.patch_embed.grid_size
        prefix = self.backbone.num_prefix_tokens
        last = self._last
        if (last.height, last.width, last.prefix) == (height, width, prefix):
            return last  # each block asks: building it anew takes longer
        self._last = TokenLayout(height, width, prefix)
        return self._last


class WindowLayout(LayoutSource):
    """A window without prefix tokens, read from an attribute of a module at each call."""

    def __init__(self, module: nn.Module, attribute: str = "window_size") -> None:
        self.module = module
        self.attribute = attribute

    def default(self) -> TokenLayout:
        """The window now."""
        size = getattr(self.module, self.attribute)
        height, width = (size, size) if isinstance(size, int) else size
        return TokenLayout(height, width)


# From a backbone, the name of an attention module in it and the module to the layout of what it
# sees, or to the reason why it sees no known grid.
StageReader = Callable[[Any, str, Any], TokenLayout | str]


class StageLayout(LayoutSource):
    """The grid of a stage, read from the backbone at each call.

    Args:
        backbone: the model.
        name: of the attention module in it.
        module: the attention module.
        read: a function with a name, so that the source can be pickled.
    """

    def __init__(self, backbone: nn.Module, name: str, module: nn.Module, read: StageReader):
        self.backbone = backbone
        self.name = name
        self.module = module
        self.read = read

    def default(self) -> TokenLayout:
        """The layout of the stage now.

        Raises:
            RuntimeError: the backbone was changed, and its stage has no known grid any more.
        """
        layout = self.read(self.backbone, self.name, self.module)
        if isinstance(layout, str):
            raise RuntimeError(f"posenc: the grid of {self.name} is not known any more: {layout}")
        return layout


class MapLayout(LayoutSource):
    """The sides of the map that an attention module received last in this thread.

    Args:
        rest: what sizes new parameters.
    """

    def __init__(self, rest: LayoutSource) -> None:
        self.rest = rest
        self._last = LastLayout()

    def default(self) -> TokenLayout:
        """As the model states it."""
        return self.rest.default()

    def see(self, height: int, width: int) -> None:
        """The module has received a map of these sides."""
        self._last.set(TokenLayout(height, width))

    def for_call(self, tokens: int) -> TokenLayout:
        """The layout of the map."""
        return self.latest()

    def latest(self) -> TokenLayout:
        """The layout of the last map."""
        return self._last.get() or self.default()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy see: no maps."""
        return {"rest": self.rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A fresh source of the same default layout."""
        self.rest = state["rest"]
        self._last = LastLayout()


class SeenLayout(LayoutSource):
    """The grid of the image that the embedding saw last in this thread.

    For models that take images of changing size. Activation checkpointing replays a block
    during backward, when other images may have been seen since: each block therefore binds its
    layout to the storage of its input (`posenc.patching.replay`).

    Args:
        rest: the layout that sizes new parameters.
        backbone: whose blocks see the tokens.
        embedding: name of the patch embedding in it.
    """

    def __init__(self, rest: TokenLayout, backbone: nn.Module, embedding: str) -> None:
        self.rest = rest
        self.backbone = backbone
        self.embedding = embedding
        self._forget()

    def default(self) -> TokenLayout:
        """The layout that the model was patched with."""
        return self.rest

    def see(self, height: int, width: int) -> None:
        """The embedding has seen an image of this grid."""
        self._set(TokenLayout(height, width, self.rest.prefix), by_embedding=True)

    def for_call(self, tokens: int) -> TokenLayout:
        """The layout that was seen; in a replay, the one of the replayed block."""
        layout = self._last.get()
        # Seen in forward but asked in backward, or the reverse: a replay below the block.
        if not torch.compiler.is_compiling() and self._last.task() != backward_task():
            return self._replays.only_one_with(tokens)
        if layout is None:
            raise RuntimeError(
                "posenc: no image has been seen in this thread, so the layout of its tokens is "
                "not known: run the patch embedding first, or call posenc.set_layout(model, layout)"
            )
        return layout

    def latest(self) -> TokenLayout:
        """What this thread saw last."""
        return self._last.get() or self.rest

    def bind(self, tokens: Tensor) -> None:
        """A block is about to run on these tokens: in forward, or again in a replay."""
        self._check_embedding()
        if is_transformed(tokens) or tokens.is_inference():
            return
        if backward_task() != NO_BACKWARD:
            self._recall(tokens)
        layout = self._last.get()
        if layout is not None:
            self._replays.bind(tokens, layout)

    def _check_embedding(self) -> None:
        embedding = getattr(self.backbone, self.embedding)
        if "_posenc" in vars(embedding):
            return
        if not any("_posenc" in vars(module) for module in embedding.modules()):  # wrapped
            raise RuntimeError(
                f"posenc: {self.embedding} has been replaced since the patch, and the new one does "
                "not tell what it saw: replace it first, then patch"
            )

    def _recall(self, tokens: Tensor) -> None:
        """Sets the layout that the replayed block had in forward."""
        layout = self._replays.find(tokens)
        # Where the whole model is replayed, its embedding ran again just now and has told.
        whole_model = self._by_embedding.value and self._last.task() == backward_task()
        if layout is not None:
            self._set(layout, by_embedding=False)
        elif not whole_model:  # its input was moved, such as by offloading
            count = tokens.shape[1:-1].numel()
            self._set(self._replays.only_one_with(count), by_embedding=False)

    def _set(self, layout: TokenLayout, by_embedding: bool) -> None:
        self._last.set(layout)
        if not torch.compiler.is_compiling():
            self._by_embedding.value = by_embedding
            self._replays.note(layout)

    def _forget(self) -> None:
        self._last = LastLayout()
        self._by_embedding = ThreadFlag()
        self._replays = Replays()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy see: no images."""
        return {"rest": self.rest, "backbone": self.backbone, "embedding": self.embedding}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A fresh source of the same default layout."""
        self.__dict__.update(state)
        self._forget()
