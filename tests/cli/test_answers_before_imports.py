"""A wrong option, name or file is answered before torch is imported, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr
from vit_clt.cli import main

said = []
for line in json.load(sys.stdin):
    with redirect_stderr(io.StringIO()) as stream:
        code = main(line.split())
    said.append((code, stream.getvalue()))
assert not {"torch", "open_clip", "timm", "transformers"} & {*sys.modules}
print(json.dumps(said))
"""
MISTAKES = {
    # the command line
    "trian": 'command is "trian"; expected "train"',
    "cascade --clt CLT --layer 3": "--layer is no option of vit-clt cascade; expected --layers",
    "train --epochs many": '--epochs is "many"; expected a whole number',
    "train --lr -1": "--lr is -1.0; expected a value above 0.",
    "train --l0 4": "--l0 is 4.0; expected only with sparsifier jumprelu.",
    "train --preset demo --config run.json": "--preset and --config are both set",
    "train --config absent.json": "--config is absent.json; found no such file.",
    "train --resume --overwrite": "--overwrite and --resume are both set",
    "audit --clt CLT --full --variants CLT": "--full and --variants are both set",
    "fidelity": "--k and --clts are both missing",
    "steer --clt CLT": "neither is given of --feature and --search",
    "contributions --clt CLT --path direct": "--path is given without effects",
    "causal --linear": "--linear is given without a CLT",
    "high-norm --any-teacher": "--any-teacher is given without a CLT",
    "high-norm --multiple 0.5": "--multiple is 0.5; expected a number of at least 1.",
    # devices
    "train --device abacus": '--device is "abacus", which is not usable: expected cpu, cuda',
    "train --device cude": '--device is "cude", which is not usable: expected cuda',
    # layers and features, by the CLT's config.json
    "cascade --clt CLT --layers 5-3": '--layers is "5-3", and 5 is above 3; expected the lower',
    "cascade --clt CLT --layers 3-4": "--layers contains 4; expected layers from 0 to 3.",
    "ablate --clt CLT --target 4": "--target contains 4; expected layers from 0 to 3.",
    "ablate --clt CLT --target=-5": "--target contains -5; expected layers from 0 to 3.",
    "ablate --clt CLT --sources 1,9": "--sources contains 9; expected layers from 0 to 3.",
    "keep-sets --clt CLT --target 4": "--target contains 4",
    "features --clt CLT --feature 1:32": "--feature is 1:32; expected features from 0 to 31.",
    "steer --clt CLT --feature 1:2 --names absent": "--names is absent, which holds no feature_",
    "features --clt CLT --vocabulary absent.txt": "absent.txt cannot be read: No such file",
    "steer --clt CLT --feature 4:1": "--feature is 4:1; expected layers from 0 to 3.",
    # CLTs
    "cascade --clt out/demo/clt": "--clt is out/demo/clt; found no such folder, which vit-clt demo",
    "weights --clt absent": "--clt is absent; found no such folder, expected that of a CLT",
    "cascade --clt EMPTY": "--clt is EMPTY; expected a config.json in it.",
    "cascade --clt TORN": "TORN/config.json is not readable JSON",
    "cascade --clt OTHER": "OTHER/config.json does not describe a CLT: 'n_layers' is missing",
    "reconstruct --clt CLT --compare a/b/c": "--compare is a/b/c; found no such folder",
    "reconstruct --clt CLT --compare CLT": '--compare holds "CLT" a second time',
    "audit --clt CLT --per-layer ./absent": "--per-layer is absent; found no such folder",
    "fidelity --clts ./absent": "--clts is absent; found no such folder",
    "explore --clt CLT --audit absent": "--audit is absent, which holds no metrics.json; expected",
    "import --from absent": "--from is absent; expected a folder holding config.yaml.",
    # ViTs
    "train --model ViT-B-23 --pretrained openai": '--model is "ViT-B-23"; expected a name of open',
    "train --model timm:vit_smal --pretrained random": '--model is "timm:vit_smal"; expected',
    "train --model local-dir:absent": '--model is "local-dir:absent"; expected a folder holding',
    "train --model hf:./absent": '--model is "hf:./absent"; expected a folder holding config.json',
    "train --model ViT-B-32": '--pretrained is missing; model "ViT-B-32" needs a tag',
    "train --model ViT-B-32 --pretrained random:x": '--pretrained is "random:x"; expected the num',
    "train --model ViT-B-32 --pretrained a/b.pt": "--pretrained is a/b.pt; found no such file",
    "train --model ViT-B-32 --pretrained opanai": '--pretrained is "opanai"; expected a tag of',
    "train --pretrained openai": '--pretrained is "openai"; model "digits" carries its own weights',
    # images
    "train --model ViT-B-32 --pretrained openai": '--data is missing; model "ViT-B-32" needs',
    "train --data cats": '--data is "cats"; expected one of digits',
    "train --data parquet:absent": "--data is parquet:absent; expected a parquet file",
    "train --data imagefolder:absent": "--data is imagefolder:absent; expected a folder there",
    "train --data coco:EMPTY": "--data is coco:EMPTY; expected annotations/instances_train2017",
    "train --data cifar10:absent": "--data is absent, which does not exist; expected a parquet",
    "train --data hf:./absent": "--data is hf:./absent; found no such folder",
    "train --split val": '--split is "val"; digits has "train" and "test".',
    "train --class-names absent": "--class-names is absent; found no such file.",
    "probe --train-data parquet:absent": "--train-data is parquet:absent; expected a parquet file",
    "retrieve --clt CLT --corpus parquet:absent": "--corpus is parquet:absent; expected a parquet",
    "reproduce --datasets cifar100:absent": "--datasets is absent, which does not exist",
    # the output folder
    "demo --out FULL": "--out is FULL, which is not empty; expected a new folder, or --overwrite.",
    "train --out FULL": "--out is FULL, which is not empty; expected a new folder, or --overwrite.",
    "demo --out FULL/notes": "--out is FULL/notes; FULL/notes is a file, expected a folder.",
}
"""Command lines, each without --out where it says none, and how their answers begin."""


def test_mistakes_are_answered_without_torch(tmp_path: Path) -> None:
    config = {"n_layers": 4, "d_model": 8, "n_features": 32, "sparsifier": {"name": "relu_topk"}}
    for folder, text in {"CLT": json.dumps(config), "TORN": "{", "OTHER": "{}"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
        (tmp_path / folder / "model.safetensors").touch()
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "notes").touch()
    lines = [line if "--out" in line else f"{line} --out new" for line in MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(MISTAKES)
    for (code, said), sentence in zip(found, MISTAKES.values(), strict=True):
        assert said.startswith(sentence), (said, sentence)
        assert code == 2
        assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", None])
def test_a_hub_that_is_not_reached_is_one_sentence(name: str | None, tmp_path: Path) -> None:
    # a port that nobody listens on
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    env |= {} if name is None else {name: "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(["weights --clt someone/clt --out new"]),
        capture_output=True,
        text=True,
        env=env,
    )
    ((code, said),) = json.loads(done.stdout)
    assert code == 2
    assert said.startswith(
        "--clt is someone/clt; found no such folder, and the Hub is not reached ("
    )
