"""Images whose clean passes are kept, so that several studies of them run the ViT once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.pass_store import PassStore


def keep_passes(vit: HookedViT, data: ImageData, folder: Path | str) -> ImageData:
    """Keep the clean passes of `data` in a folder, and read those that it has.

    From now on every study that is given `vit` and the images returned reads what an earlier one
    has run, also in another process. Numbers are the same to the last digit. An image takes
    4 (2 L + 1) T d bytes on disk: 3.8 MB with a ViT-B/32, 15 MB with a ViT-B/16.

        data = keep_passes(vit, data, "out/passes")
        contribution_scores(vit, clt, data)
        reconstruction(vit, clt, data)          # runs no attention and no MLP

    Args:
        vit: the ViT, whose weights must not change from now on; `vit.pass_store` is set.
        data: the images.
        folder: a folder of passes of this ViT, or one that is not there or empty.

    Returns:
        The same images, whose batches are kept.

    Raises:
        InputError: the folder is of another ViT, or the disk has no room.
    """
    store = vit.pass_store
    if store is None or store.folder != Path(folder):
        store = PassStore(folder, vit)
    store.check_room(len(data))
    vit.pass_store = store
    return _KeptImages(data, store)


class _KeptImages(ImageSubset):
    """All images of another data set; the passes of batches that studies read in turn are kept."""

    def __init__(self, data: ImageData, store: PassStore):
        super().__init__(data, range(len(data)))
        self.batch_size, self.left_out, self.remarks = data.batch_size, data.left_out, data.remarks
        self._store = store

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels with these indices."""
        images, labels = super().batch(indices)
        # others, such as batches of the most active images of each feature, are rarely seen again
        if _evenly_spaced(indices):
            self._store.keep(images)
        return images, labels


def _evenly_spaced(indices: Sequence[int]) -> bool:
    """Whether these ascend in steps that differ by one at most, as `evenly_spaced` gives them."""
    steps = {later - earlier for earlier, later in pairwise(indices)}
    return bool(steps) and 0 < min(steps) >= max(steps) - 1
