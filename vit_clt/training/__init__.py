"""Training, from images to a finished CLT: `train` does it, `TrainConfig` says how.

A run (`run`) takes batches of token rows (`batches`, in the order of `order`, perhaps out of a
`cache`) through steps (`step`, `objective`) on an `engine`, and leaves `checkpoints` on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.training.cost import estimate as estimate
    from vit_clt.training.trainer import train as train

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cost": ["estimate"],
        "trainer": ["train"],
    },
)
