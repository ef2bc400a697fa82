"""CLTs in the file formats of other tools.

`export_circuit_tracer` and `import_circuit_tracer` write and read the files of circuit-tracer;
`thresholds` fits the thresholds by which these files can stand for a top-k sparsifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.interchange.circuit_tracer import check_exportable as check_exportable
    from vit_clt.interchange.circuit_tracer import export_circuit_tracer as export_circuit_tracer
    from vit_clt.interchange.circuit_tracer import import_circuit_tracer as import_circuit_tracer

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "circuit_tracer": ["check_exportable", "export_circuit_tracer", "import_circuit_tracer"],
    },
)
