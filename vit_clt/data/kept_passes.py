"""Images whose clean passes are kept, so that several studies of them run the ViT once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.pass_store import PassStore


def keep_passes(vit: HookedViT, data: ImageData, folder: Path | str) -> ImageData:
    """Keep the clean passes of `data` in a folder, and read those that it has.

    From now on every study that is given `vit` and the images returned reads what an earlier one
    has run, also in another process. Numbers are the same to the last digit: passes of other
    weights, another number of threads, another version of torch or another device are kept apart
    (`vit_clt.hooks.pass_store`). An image takes 4 (2 L + 1) T d bytes on disk: 3.8 MB with a
    ViT-B/32, 15 MB with a ViT-B/16. Where the disk is nearly full, no more are kept.

        data = keep_passes(vit, data, "out/passes")
        contribution_scores(vit, clt, data)
        reconstruction(vit, clt, data)          # runs no attention and no MLP

    Args:
        vit: the ViT, whose weights must not change from now on; `vit.pass_store` is set.
        data: the images.
        folder: where passes are kept, of any ViTs.

    Returns:
        The same images, whose batches are kept.

    Raises:
        InputError: a file is in the place of the folder, or the folder cannot be written.
    """
    if vit.pass_store is None or vit.pass_store.folder.parent != Path(folder):
        vit.pass_store = PassStore(folder, vit)
    return _KeptImages(data, vit.pass_store)


class _KeptImages(ImageSubset):
    """All images of another data set; the passes of batches that are read in turn are kept.

    Batches in turn are those of `batches`, and ranges: others, such as the most active images of
    each feature, are rarely seen again.
    """

    def __init__(self, data: ImageData, store: PassStore):
        super().__init__(data, range(len(data)))
        self.batch_size, self.left_out, self.remarks = data.batch_size, data.left_out, data.remarks
        self._store = store

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images and labels with these indices."""
        images, labels = super().batch(indices)
        if isinstance(indices, range):
            self._store.keep(images)
        return images, labels

    def batches(self, rows: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of these indices."""
        for images, labels in super().batches(rows):
            self._store.keep(images)
            yield images, labels

    def evenly_spaced(self, most: int) -> ImageData:
        """At most so many of the images, evenly spaced, whose passes are kept too."""
        return _KeptImages(self._data.evenly_spaced(most), self._store)
