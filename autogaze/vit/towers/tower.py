"""The interface of a ViT for GazedViT.

A tower is a view of a user's model, not a copy: it uses the model's own weights, so training trains the model. A model
is known by its exact class: a subclass may do anything differently, and would give wrong numbers silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.vit.features import PoolInput
from autogaze.vit.towers.wrapped import Foreign, Part, check_part

Attend = Callable[..., Tensor]  # (q, k, v, scale=None), each (M, heads, head size) -> the same shape


class Tower(ABC):
    """A ViT in parts: embed patches, add positions, run the blocks on packed rows, pool.

    Parts are looked up when they are used, so that a layer which is swapped later takes part.
    """

    root: Foreign  # the ViT itself, which may stand inside the user's model
    library: str  # "timm" or "transformers"
    patch_size: int  # pixels
    prefix_tokens: int  # R, class and register tokens in front of a run
    native_side: tuple[int, int]  # rows and columns of the grid that the position embedding was trained on
    attention_dropout: float  # packed attention has none, so training refuses it
    run_block: Callable[..., Tensor]  # (block, rows, attend, rotary) -> rows; may be replaced by its compiled form

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """Every module that is run by a formula of this tower instead of its own `forward`."""

    def check(self) -> None:
        """Refuse what a user put on, or in the place of, a part that a formula runs.

        Raises:
            ValueError: naming the part.
        """
        for part in self.parts():
            check_part(part, self.library)

    @property
    def class_tokens(self) -> int:
        """Prefix tokens that say what a picture shows; the others are registers."""
        return min(1, self.prefix_tokens)

    def start(self, build: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
        """Rows that go into the blocks, built from pixels (N, 3, patch_size, patch_size)."""
        return build(patches)

    @abstractmethod
    def embed(self, patches: Tensor) -> Tensor:
        """(N, 3, patch_size, patch_size) pixels -> (N, D), without positions."""

    @abstractmethod
    def positions(self, grid: PatchGrid) -> Tensor | None:
        """(patches_per_frame, D) position embedding of every id of a grid; None where the family only rotates."""

    @abstractmethod
    def prefix(self) -> Tensor | None:
        """(R, D) class and register tokens with their own positions; None if there are none."""

    @abstractmethod
    def encode(self, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        """Everything from the first norm to the last on packed rows (M, D), or on images of rows (S, L, D).

        Args:
            attend: attention within the bounds of the layout.
            rotary: rotary angles of every row, as `rotary` gives them, with prefix rows not rotated.
        """

    def rotary(self, grid: PatchGrid) -> Tensor | None:
        """(patches_per_frame, ...) rotary table of every id of a grid; None where there are no rotary positions."""
        return None

    def drop(self, rows: Tensor) -> Tensor:
        """Dropout of embedded tokens."""
        return rows

    @abstractmethod
    def pool(self, tokens: PoolInput) -> Tensor:
        """(S, D') what the dense model puts before its classifier."""
