"""Data sets of Hugging Face datasets on the disk: `save_to_disk`, repositories, configurations."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.hooks import HookedViT

pytestmark = pytest.mark.usefixtures("offline_datasets")


def stored(values: list[int]) -> datasets.Dataset:
    images = []
    for value in values:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), value).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    rows = {"image": images, "label": [i % 2 for i in range(len(values))]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_what_save_to_disk_wrote(digits_vit: HookedViT, tmp_path: Path) -> None:
    stored([3, 9, 7]).save_to_disk(tmp_path / "one")
    data = load_data(f"hf:{tmp_path}/one", vit=digits_vit, limit=2)
    assert (len(data), data.class_names, data.split) == (2, ["cat", "dog"], None)
    assert torch.equal(data.batch([1])[0][0], digits_vit.preprocess(Image.new("L", (8, 8), 9)))
    splits = {"train": stored([1]), "validation": stored([2, 5])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert len(load_data(f"hf:{tmp_path}/two", vit=digits_vit, split="val")) == 2
    with pytest.raises(InputError, match=r'split is "test"; hf:.* has train and validation'):
        load_data(f"hf:{tmp_path}/two", vit=digits_vit)


def test_a_repository_with_configurations(
    digits_vit: HookedViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    text = "---\nconfigs:\n"
    for name, values in (("large", [1, 2, 3]), ("small", [1])):
        (tmp_path / "repo" / name).mkdir(parents=True)
        stored(values).to_parquet(tmp_path / "repo" / name / "test.parquet")
        text += f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/*\n"
    (tmp_path / "repo/README.md").write_text(text + "---\n")
    form = f"hf:{tmp_path}/repo"
    with pytest.raises(InputError, match=r"configurations large, small; .* as in hf:.*repo:large"):
        load_data(form, vit=digits_vit)
    assert len(load_data(f"{form}:large", vit=digits_vit)) == 3
    assert len(load_data(f"{form}:small", vit=digits_vit)) == 1
    assert not cache.exists() or not list(cache.rglob("*.arrow"))  # no copy stays


def test_a_folder_whose_name_is_a_pattern_is_refused(digits_vit: HookedViT, tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    with pytest.raises(InputError, match="takes such a path for a pattern"):
        load_data(f"hf:{tmp_path}/a[1]", vit=digits_vit)
