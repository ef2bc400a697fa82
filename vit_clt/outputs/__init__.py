"""Where results are written: folders that hold the old result or the new one at every moment.

A command writes to an `OutputFolder`; what can be resumed asks `check_same` first.
"""

from vit_clt.outputs.folder import OutputFolder, close_outputs
from vit_clt.outputs.same_run import check_same

__all__ = ["OutputFolder", "check_same", "close_outputs"]
