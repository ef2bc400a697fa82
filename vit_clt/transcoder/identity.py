"""Which CLT some results are of: hashes of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from vit_clt.transcoder.model import CrossLayerTranscoder

_DECODERS = ("W_dec", "b_dec", "W_skip")


def encoder_sha256(clt: CrossLayerTranscoder) -> str:
    """Hash of the parts that codes depend on: encoders, thresholds and sparsifier, not decoders."""
    return _sha256(clt, lambda name: not name.startswith(_DECODERS))


def weights_sha256(clt: CrossLayerTranscoder) -> str:
    """Hash of all weights and of the sparsifier, on which scores and effects depend."""
    return _sha256(clt, lambda name: True)


def _sha256(clt: CrossLayerTranscoder, taken: Callable[[str], bool]) -> str:
    digest = hashlib.sha256(json.dumps(clt.config.to_json()["sparsifier"]).encode())
    for name, tensor in sorted(clt.state_dict().items()):
        if taken(name):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
