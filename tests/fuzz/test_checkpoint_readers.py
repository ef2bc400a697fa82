"""Damaged and hostile files either load to something valid, or are refused in one sentence.

`make fuzz` runs the same tests with more examples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY, noisy_clt, random_clt, tiny_clip
from hypothesis import given
from hypothesis import strategies as st
from oracles.hostile import Damage, contents, damages, fuzzing, write
from safetensors.torch import save_file

from vit_clt import CLTConfig, CrossLayerTranscoder, JumpReLU
from vit_clt.analysis.graphs.files import load_graphs
from vit_clt.analysis.retrieval.index import RetrievalIndex
from vit_clt.cli.train import Train
from vit_clt.data.images import TensorImages
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.towers import load_open_clip
from vit_clt.inputs import read_json
from vit_clt.interchange.circuit_tracer import export_circuit_tracer, import_circuit_tracer
from vit_clt.training.checkpoints import Checkpoints
from vit_clt.training.store import ActivationStore
from vit_clt.transcoder.checkpoints import HASH_KEY
from vit_clt.transcoder.sparsifiers import SPARSIFIERS
from vit_clt.typed import made

VIT = HookedViT(tiny_clip())
IMAGES = TensorImages(torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
CLT = random_clt(VIT)


def refused_or(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in one sentence; any other error is a failure."""
    try:
        return read()
    except InputError as error:
        text = str(error)
        assert text.endswith(".")
        assert "\n" not in text
        assert len(text) < 2000
        return None


def finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for name, t in tensors.items() if name != "log_theta")


@dataclass
class Files:
    """A valid folder, which each example damages in a copy."""

    whole: dict[str, bytes]
    copy: Path

    def damaged(self, draw: Any, rehash: Callable[[dict[str, bytes]], None] | None = None) -> Path:
        """The copy with one or two files damaged, and hashes of what was damaged written anew."""
        files = dict(self.whole)
        for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2)):
            damage: Damage = draw(damages)
            files[name] = damage(files[name])
        if rehash is not None and draw(st.booleans()):
            rehash(files)
        return write(self.copy, files)


def files_of(make: Callable[[Path], Any], factory: pytest.TempPathFactory) -> Files:
    place = factory.mktemp("fuzz")
    (place / "whole").mkdir()
    make(place / "whole")
    return Files(contents(place / "whole"), place / "copy")


def put_hash(facts: str, key: str, arrays: str) -> Callable[[dict[str, bytes]], None]:
    """Write the hash of the damaged arrays into the facts beside them, if those are still JSON."""

    def rehash(files: dict[str, bytes]) -> None:
        try:
            values = json.loads(files[facts])
            values[key] = hashlib.sha256(files[arrays]).hexdigest()
            files[facts] = json.dumps(values).encode()
        except (ValueError, TypeError, RecursionError):
            pass

    return rehash


@pytest.fixture(scope="module", params=sorted(SPARSIFIERS))
def clt(request: Any, tmp_path_factory: Any) -> Files:
    sparsifier = SPARSIFIERS[request.param].for_l0(3)
    config = CLTConfig(3, 4, 8, sparsifier, teacher=VIT.identity())
    saved = noisy_clt(config, 0, torch.float32)
    return files_of(saved.save_pretrained, tmp_path_factory)


@fuzzing(100)
@given(st.data())
def test_clt(clt: Files, data: Any) -> None:
    rehash = put_hash("config.json", HASH_KEY, "model.safetensors")
    folder = clt.damaged(data.draw, rehash)
    found = refused_or(lambda: CrossLayerTranscoder.from_pretrained(folder))
    if found is not None:
        assert finite(found.state_dict())
        assert type(found.config).from_json(found.config.to_json()) == found.config
        x = torch.zeros(found.config.n_layers, 2, found.config.d_model)
        assert found(x).shape == x.shape


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: Any) -> Files:
    def make(folder: Path) -> None:
        document = {
            "model_cfg": TINY,
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(document))
        save_file(tiny_clip().state_dict(), folder / "open_clip_model.safetensors")

    return files_of(make, tmp_path_factory)


@fuzzing(150)
@given(st.data())
def test_teacher(teacher: Files, data: Any) -> None:
    folder = teacher.damaged(data.draw)
    with pytest.MonkeyPatch.context() as patch:
        # it takes most of the time, and has its own tests
        patch.setattr(load_open_clip, "load_tokenizer", lambda model: None)
        found = refused_or(lambda: HookedViT.from_open_clip(f"local-dir:{folder}"))
    if found is not None:
        assert finite(found.state_dict())
        assert found.cfg.n_layers >= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Files:
    options = {
        **{"preset": "demo", "sparsifier": "jumprelu", "n_features": 16, "bandwidth": 1.0},
        **{"cache": None, "class_names": None, "model": "digits", "limit": 40, "k": 4},
    }
    default = Train.defaults([])
    training = replace(default.training, sparsity=SPARSIFIERS["jumprelu"].training())
    document = {"options": options | {"training": asdict(training)}, "versions": {}}
    return files_of(lambda f: (f / "run.json").write_text(json.dumps(document)), tmp_path_factory)


@fuzzing(150)
@given(st.data())
def test_run(run: Files, data: Any) -> None:
    path = run.damaged(data.draw) / "run.json"
    found = refused_or(lambda: Train.defaults(["--config", str(path)]))
    if found is not None:
        assert made(type(found.training), vars(found.training)) == found.training
    document = refused_or(lambda: read_json(path))
    if document is not None:
        json.dumps(document, allow_nan=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: Any) -> Files:
    built = RetrievalIndex.build(VIT, CLT, IMAGES, tokens=["cls", "patch"], layers=[1, 3])
    return files_of(built.save, tmp_path_factory)


@fuzzing(150)
@given(st.data())
def test_index(index: Files, data: Any) -> None:
    folder = index.damaged(data.draw, put_hash("index.json", "sha256", "index.safetensors"))
    found = refused_or(lambda: RetrievalIndex.load(folder, VIT, CLT))
    if found is not None:
        for kind, by_layer in found.corpus.codes.items():
            for s, codes in by_layer.items():
                assert np.isfinite(codes.data).all()
                assert codes.toarray().shape == (found.facts.n_images, found.facts.n_features)
                assert np.isfinite(found.corpus.inputs[kind][s]).all()
        assert len(found.corpus.labels) == found.facts.n_images


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any) -> Files:
    return files_of(lambda f: ActivationStore(f, VIT, IMAGES, progress=False), tmp_path_factory)


@fuzzing(100)
@given(st.data())
def test_store(store: Files, data: Any) -> None:
    folder = store.damaged(data.draw)
    found = refused_or(lambda: ActivationStore(folder, VIT, IMAGES, progress=False))
    if found is not None:
        read = refused_or(lambda: found.read(range(6)))
        assert read is None or finite({"x": read.x, "y": read.y})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> Files:
    config = CLTConfig(2, 4, 6, JumpReLU())
    saved = noisy_clt(config, 0, torch.float32)
    files = files_of(lambda f: export_circuit_tracer(saved, f), tmp_path_factory)
    values = dict(line.split(": ") for line in files.whole["config.yaml"].decode().splitlines())
    files.whole["config.yaml"] = json.dumps(values).encode()  # JSON is YAML
    return files


@fuzzing(150)
@given(st.data())
def test_circuit_tracer(exported: Files, data: Any) -> None:
    folder = exported.damaged(data.draw)
    found = refused_or(lambda: import_circuit_tracer(folder))
    if found is not None:
        assert finite(found.state_dict())
        assert not found.thresholds().isnan().any()


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: Any) -> Files:
    def make(folder: Path) -> None:
        place = folder.parent / "snapshots"
        Checkpoints(place).save(5, {"model": {"w": torch.ones(3)}}, {"step": 5, "rates": [0.5]})
        for name, content in contents(place / "step-00000005").items():
            (folder / name).write_bytes(content)

    return files_of(make, tmp_path_factory)


@fuzzing(100)
@given(st.data())
def test_snapshots(snapshots: Files, data: Any) -> None:
    folder = snapshots.copy.parent / "run" / "step-00000005"
    folder.parent.mkdir(exist_ok=True)

    def rehash(files: dict[str, bytes]) -> None:
        lines = [
            f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            for name, content in files.items()
            if name != "SHA256SUMS"
        ]
        files["SHA256SUMS"] = "".join(lines).encode()

    files = contents(snapshots.damaged(data.draw, rehash))
    write(folder, files)
    found, damages_told = Checkpoints(folder.parent).newest()
    assert (found is None) == (len(damages_told) == 1)
    if found is not None:
        assert isinstance(found.state, dict)


@fuzzing(100)
@given(st.data())
def test_graphs(graphs: Files, data: Any) -> None:
    path = graphs.damaged(data.draw) / "graphs.json"
    for graph in refused_or(lambda: load_graphs(path)) or []:
        assert np.isfinite(graph.edges[["effect", "influence"]].to_numpy(float)).all()
        assert graph.nodes["kind"].iloc[0] == "logit"
        assert np.isfinite(graph.carried["effect"].to_numpy(float)).all()
        assert all(0 < node < len(graph.nodes) for group in graph.groups.values() for node in group)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: Any) -> Files:
    numbers = {"value": 0.5, "effect": 0.5, "total": 1.0, "influence": 0.5}
    nothing = {"layer": None, "token": None, "feature": None}
    facts = {
        **{"image": "digits 0", "target": "3", "model": "digits", "clt": "out/clt", "logit": 2.0},
        **{"norms": "held", "l0": 3.0, "n_layers": 4, "n_tokens": 10, "patch_grid": [3, 3]},
        **{"n_active": 9, "n_expanded": 9, "n_candidates": 9, "kept_influence": 0.9},
        **{"replacement_score": 0.5, "completeness_score": 0.5},
        **{"kept_effect": 0.9, "completeness": 0.9, "error_share": 0.1, "unexpanded_share": 0.1},
    }
    nodes = [
        {"node": 0, "kind": "logit", **nothing, **numbers},
        {"node": 1, "kind": "feature", "layer": 1, "token": 0, "feature": 5, **numbers},
        {"node": 2, "kind": "patch", "layer": None, "token": 4, "feature": None, **numbers},
    ]
    edges = [{"source": 1, "target": 0, "effect": 0.5, "influence": 0.5}]
    ends = {"source": 1, "target": 0}
    carried = [
        {**ends, "by": "residual", "layer": None, "head": None, "effect": 0.2},
        {**ends, "by": "head", "layer": 2, "head": 1, "effect": 0.3},
    ]
    document = {
        "schema": "vit-clt attribution graphs 3",
        "graphs": [
            {
                **{"facts": facts, "nodes": nodes, "edges": edges, "carried": carried},
                "groups": {"both": [1, 2]},
                "names": {"0:1": "frog"},
            }
        ],
    }
    whole = files_of(
        lambda f: (f / "graphs.json").write_text(json.dumps(document)), tmp_path_factory
    )
    write(whole.copy, whole.whole)
    assert len(load_graphs(whole.copy / "graphs.json")) == 1
    return whole
