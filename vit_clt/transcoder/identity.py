"""Which CLT some results are of: a hash of the weights that its codes depend on."""

from __future__ import annotations

import hashlib
import json

from vit_clt.transcoder.model import CrossLayerTranscoder


def encoder_sha256(clt: CrossLayerTranscoder) -> str:
    """Hash of the parts that codes depend on: encoders, thresholds and sparsifier, not decoders."""
    digest = hashlib.sha256(json.dumps(clt.config.to_json()["sparsifier"]).encode())
    for name, tensor in sorted(clt.state_dict().items()):
        if not name.startswith(("W_dec", "b_dec", "W_skip")):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
