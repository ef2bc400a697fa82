"""The names of features as JSON text, and read back from it.

    {"schema": "vit-clt feature names 1", "weights_sha256": "...", "facts": {...},
     "names": {"7:12": {"text": "frog", "auc": [0.91, 0.88, 0.94], "texts_mean": 0.5,
                        "features_mean": 0.55, "evidence": "write, images"}, ...}}

auc is the value with the ends of its interval. A user's own names need "text" alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_clt.errors import InputError
from vit_clt.inputs import check_mapping, read_json, reading

if TYPE_CHECKING:
    from vit_clt.analysis.features.names import FeatureNames
    from vit_clt.transcoder.model import CrossLayerTranscoder

SCHEMA = "vit-clt feature names 1"
FILE = "feature_names.json"
MAX_BYTES = 1_000_000_000
MAX_TEXT = 1000


def names_json(names: FeatureNames) -> str:
    """The text of the file: the features that have a name."""
    document = {
        "schema": SCHEMA,
        "weights_sha256": names.weights_sha256,
        "facts": {"n": names.n_held_out, **names.facts().context()},
        "names": {f"{s}:{i}": _entry(name) for (s, i), name in names.names.items()},
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _entry(name: Any) -> dict[str, Any]:
    auc = [round(v, 6) for v in (float(name.auc), name.auc.low, name.auc.high)]
    means = {"texts_mean": name.texts_mean, "features_mean": name.features_mean}
    rounded = {key: None if v != v else round(v, 6) for key, v in means.items()}
    return {"text": name.text, "auc": auc, **rounded, "evidence": name.evidence}


def names_path(place: Path | str) -> Path:
    """The file of names: the place itself, or the one in this folder.

    Raises:
        InputError: there is none.
    """
    path = Path(place) / FILE if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise InputError(
            "names",
            f"is {place}, which holds no {FILE}; expected the output folder of vit-clt features or "
            "explore, or that file.",
        )
    return path


def read_names(place: Path | str, clt: CrossLayerTranscoder) -> dict[tuple[int, int], str]:
    """The texts of a file of names, or of the folder of `vit-clt features` that holds one.

    Args:
        place: the file or the folder.
        clt: the CLT whose features they are.

    Raises:
        InputError: no such file, another schema, names of another CLT or of features that it has
            not, or a text that is empty or too long.
    """
    from vit_clt.transcoder.identity import weights_sha256

    path = names_path(place)
    document = read_json(path, MAX_BYTES)
    if document.get("schema") != SCHEMA:
        found = json.dumps(document.get("schema"))[:80]
        raise InputError("names", f'is {path}, which has schema {found}; expected "{SCHEMA}".')
    of = document.get("weights_sha256")
    if of is not None and of != weights_sha256(clt):
        raise InputError(
            "names",
            f"is {path}, whose names are those of another CLT; expected names of this one, made by "
            "vit-clt features --vocabulary.",
        )
    cfg = clt.config
    with reading(path, 'names as {"7:12": {"text": "frog"}}', problem="holds no names"):
        found_names = check_mapping(document["names"], "names", "an object")
        return {
            _address(key, cfg.n_layers, cfg.n_features): _text(key, entry)
            for key, entry in found_names.items()
        }


def _address(key: str, n_layers: int, n_features: int) -> tuple[int, int]:
    layer, _, feature = key.partition(":")
    if not (layer.isdecimal() and feature.isdecimal()):
        raise ValueError(f"{key[:40]!r} is no layer:feature")
    if int(layer) >= n_layers or int(feature) >= n_features:
        raise ValueError(f"{key[:40]!r} is none of {n_layers} layers of {n_features} features")
    return int(layer), int(feature)


def _text(key: str, entry: Any) -> str:
    text = entry["text"]
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise ValueError(f"the text of {key} is not one of 1 to {MAX_TEXT} characters")
    return text
