"""Training, from images to a finished CLT: `train` trains one as `TrainConfig` says.

A `planned` run is checked and its cost told before it starts in its `run_folder`.
A run (`run`) takes optimiser steps (`step`, `objective`) on an `engine`. Its batches of token rows
(`batches`) follow the shuffled order of `order`, and their activations come from the ViT or from an
activation `store`. The run writes `checkpoints` as it goes.
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
