"""COCO: one label an image by box area, every category for "any hit", bad annotations refused."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from builders import random_clt
from PIL import Image

from vit_clt import InputError, ZeroShot, load_data
from vit_clt.analysis import ablation_curves, cascade
from vit_clt.cli import main
from vit_clt.data.coco import single_labels
from vit_clt.data.images import ImageSubset
from vit_clt.data.prompts import COCO_CLASSES
from vit_clt.hooks import HookedViT

pytestmark = pytest.mark.usefixtures("offline_datasets")
# ids out of order and with gaps, as in COCO
CATEGORIES = [{"id": 7, "name": "train"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
NAMES = ["person", "train", "dog"]
BOXES = {  # image -> (category id, width, height)
    10: [(1, 2, 3), (18, 4, 4)],  # the dog is larger
    11: [],
    12: [(1, 4, 2), (1, 3, 3), (7, 4, 4)],  # 8 + 9 > 16: summed, the persons are larger
    13: [(18, 5, 2), (7, 2, 5)],  # a tie goes to the lower id
    14: [(7, 0, 9)],
}
LABELS = {10: 2, 12: 0, 13: 1, 14: 1}
SETS = {10: {0, 2}, 12: {0, 1}, 13: {1, 2}, 14: {1}}


def document() -> dict[str, list[dict[str, object]]]:
    return {
        "images": [{"id": i, "file_name": f"{i:012}.png"} for i in BOXES],
        "annotations": [
            # "area" is that of the outline in COCO, not of the box
            {"image_id": i, "category_id": c, "bbox": [1.5, 0, w, h], "area": 999 - i, "iscrowd": 0}
            for i, boxes in BOXES.items()
            for c, w, h in boxes
        ],
        "categories": CATEGORIES,
    }


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    write(tmp_path, document())
    for i in BOXES:
        picture(i).save(tmp_path / f"val2017/{i:012}.png")
    return tmp_path


def write(folder: Path, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "annotations/instances_val2017.json").write_text(text)


def test_label_is_the_category_of_the_largest_summed_box_area(
    digits_vit: HookedViT, coco: Path
) -> None:
    data = load_data(f"coco:{coco}", vit=digits_vit)  # "val" by default
    images, labels = data.batch(range(len(data)))
    assert labels.tolist() == list(LABELS.values())
    assert data.label_sets == [frozenset(s) for s in SETS.values()]
    assert data.left_out == 1
    assert data.class_names == NAMES
    assert (data.name, data.split) == (f"coco:{coco} (val)", "val")
    expected = torch.stack([digits_vit.preprocess(picture(i)) for i in LABELS])
    assert torch.equal(images, expected)


@pytest.mark.parametrize(("limit", "left_out"), [(1, 0), (2, 1), (9, 1)])
def test_limit_counts_labelled_images(
    digits_vit: HookedViT, coco: Path, limit: int, left_out: int
) -> None:
    data = load_data(f"coco:{coco}", vit=digits_vit, limit=limit)
    n = min(limit, 4)
    assert data.batch(range(n))[1].tolist() == list(LABELS.values())[:n]
    assert (len(data), len(data.label_sets), data.left_out) == (n, n, left_out)


def test_some_rows_keep_their_label_sets(digits_vit: HookedViT, coco: Path) -> None:
    data = ImageSubset(load_data(f"coco:{coco}", vit=digits_vit), [3, 0])
    assert data.label_sets == [frozenset(SETS[14]), frozenset(SETS[10])]


def test_single_labels_on_areas() -> None:
    truth = single_labels([[(4, 1.0), (2, 0.5), (2, 0.75)], [], [(3, 0.0)]], None)
    assert (truth.rows, truth.labels, truth.left_out) == ([0, 2], [2, 3], 1)
    assert truth.label_sets == [frozenset({2, 4}), frozenset({3})]


def test_names_of_ones_own(digits_vit: HookedViT, coco: Path) -> None:
    data = load_data(f"coco:{coco}", vit=digits_vit, class_names=["a", "b", "c"])
    assert data.class_names == ["a", "b", "c"]
    with pytest.raises(InputError, match="class_names holds 2 names; coco has 3 classes"):
        load_data(f"coco:{coco}", vit=digits_vit, class_names=["a", "b"])


def without(key: str, where: str | None = None) -> dict[str, list[dict[str, object]]]:
    content = document()
    if where is None:
        del content[key]
    else:
        del content[where][1][key]
    return content


def with_box(box: object) -> dict[str, list[dict[str, object]]]:
    content = document()
    content["annotations"][1]["bbox"] = box
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{images", "is not readable JSON"),
        ([], "holds a list; expected a JSON object"),
        (without("categories"), 'has no "categories"; expected COCO instances'),
        (without("annotations"), 'has no "annotations"'),
        ({**document(), "annotations": []}, 'has no "annotations"'),
        ({**document(), "images": [{"id": 99, "file_name": "x"}]}, "no image with a box"),
        (without("bbox", "annotations"), 'annotation 1 has no "bbox"'),
        (without("file_name", "images"), 'in "images"; expected id and file_name'),
        (with_box([0, 0, -1, 2]), "annotation 1 has bbox"),
        (with_box([0, 0, float("nan"), 2]), "the number NaN is not finite"),
        (with_box([0, 0, 1]), "expected left, top, width, height"),
        (with_box("big"), "annotation 1 has bbox big"),
        ({**document(), "categories": CATEGORIES[:2]}, "category_id 18, which is not in"),
    ],
)
def test_bad_annotations_are_refused(
    digits_vit: HookedViT, coco: Path, content: object, message: str
) -> None:
    write(coco, content)
    with pytest.raises(InputError, match=message) as caught:
        load_data(f"coco:{coco}", vit=digits_vit)
    assert "\n" not in str(caught.value)


def test_images_may_lie_in_folders(digits_vit: HookedViT, coco: Path) -> None:
    content = document()
    for image in content["images"]:
        image["file_name"] = f"part {image['id'] % 2}/{image['file_name']}"
    write(coco, content)
    for i in BOXES:
        (coco / f"val2017/part {i % 2}").mkdir(exist_ok=True)
        (coco / f"val2017/{i:012}.png").rename(coco / f"val2017/part {i % 2}/{i:012}.png")
    data = load_data(f"coco:{coco}", vit=digits_vit, split="validation")
    expected = torch.stack([digits_vit.preprocess(picture(i)) for i in LABELS])
    assert torch.equal(data.batch(range(len(data)))[0], expected)


def test_an_outline_counts_as_the_box_around_it(digits_vit: HookedViT, coco: Path) -> None:
    content = document()
    outlined = {"bbox": [], "segmentation": [[0, 0, 9, 0], [1, 1, 2, 2, 5, 9]]}
    content["annotations"].append({"image_id": 10, "category_id": 1, **outlined})
    content["annotations"].append({"image_id": 14, "category_id": 18, "bbox": []})
    write(coco, content)
    data = load_data(f"coco:{coco}", vit=digits_vit)
    # 6 + 81 of the person are more than 16 of the dog
    assert data.batch(range(4))[1].tolist() == [0, *list(LABELS.values())[1:]]
    assert data.label_sets == [frozenset(s) for s in SETS.values()]
    assert data.remarks == [
        "images without a box left out: 1",
        "annotations without a box or an outline left out: 1",
    ]


@pytest.mark.parametrize("name", ["../000000000010.png", "/etc/passwd", "https://a.b/c.png"])
def test_names_that_lead_elsewhere_are_refused(
    digits_vit: HookedViT, coco: Path, name: str
) -> None:
    content = document()
    content["images"][0]["file_name"] = name
    write(coco, content)
    with pytest.raises(InputError, match="expected a file name in it"):
        load_data(f"coco:{coco}", vit=digits_vit)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("categories", "id", "7"),
        ("categories", "name", 3),
        ("images", "id", [1]),
        ("images", "file_name", None),
        ("annotations", "image_id", {}),
        ("annotations", "category_id", [7]),
        ("annotations", "bbox", [0, 0, 10**90, 1]),
        ("annotations", "bbox", [0, 0, True, 1]),
    ],
)
def test_values_of_other_types_are_refused(
    digits_vit: HookedViT, coco: Path, key: str, field: str, value: object
) -> None:
    content = copy.deepcopy(document())
    content[key][1][field] = value
    write(coco, content)
    with pytest.raises(InputError, match=r"instances_val2017\.json"):
        load_data(f"coco:{coco}", vit=digits_vit)


def test_missing_images_are_counted_and_named(digits_vit: HookedViT, coco: Path) -> None:
    (coco / "val2017/000000000011.png").unlink()  # has no box, so it is not missed
    load_data(f"coco:{coco}", vit=digits_vit)
    for i in (12, 14):
        (coco / f"val2017/{i:012}.png").unlink()
    with pytest.raises(InputError, match=r"^2 of 4 images are missing in .*000000000012\.png"):
        load_data(f"coco:{coco}", vit=digits_vit)
    assert len(load_data(f"coco:{coco}", vit=digits_vit, limit=1)) == 1


def test_unreadable_image_is_named(digits_vit: HookedViT, coco: Path) -> None:
    (coco / "val2017/000000000012.png").write_bytes(b"not an image")
    data = load_data(f"coco:{coco}", vit=digits_vit)
    with pytest.raises(InputError, match=r"row 1 holds an image.*000000000012\.png"):
        data.batch([0, 1])


def test_pictures_are_turned_as_the_camera_says(digits_vit: HookedViT, coco: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    picture(10).save(coco / "val2017/000000000010.png", exif=exif)
    data = load_data(f"coco:{coco}", vit=digits_vit, limit=1)
    turned = picture(10).transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(data.batch([0])[0][0], digits_vit.preprocess(turned))


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("coco:{}", {"split": "test"}, r'split is "test"; coco:.* has val\.'),
        ("coco", {"split": "test"}, 'split is "test"; coco has "train" and "val"'),
        ("coco:{}/absent", {}, r"expected annotations/instances_val2017\.json in that folder"),
        ("coco:", {}, 'data is "coco:"; expected one of'),
        ("coco:{}", {"label_column": "x"}, 'label_column is "x"; coco has its own'),
    ],
)
def test_bad_forms_are_refused(
    digits_vit: HookedViT, coco: Path, form: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_data(form.format(coco), vit=digits_vit, **options)


def test_hub_copy_gives_the_same_labels(
    digits_vit: HookedViT, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = {1: 0, 7: 6, 18: 16}  # of person, train and dog among the 80
    rows = {
        "image": [picture(i) for i in BOXES],
        "objects": [
            {
                "category": [number[c] for c, _, _ in boxes],
                "bbox": [[1.5, 0.0, 1.5 + w, float(h)] for _, w, h in boxes],  # corners
            }
            for boxes in BOXES.values()
        ],
    }
    objects = {
        "category": datasets.List(datasets.ClassLabel(names=COCO_CLASSES)),
        "bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    stored = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"))
    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return stored

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = load_data("coco", vit=digits_vit)
    local = load_data(f"coco:{coco}", vit=digits_vit)
    assert asked == [("detection-datasets/coco", "val")]
    assert hub.class_names == COCO_CLASSES
    assert (hub.name, hub.split, hub.left_out) == ("coco (val)", "val", 1)
    (images, labels), (expected, numbers) = (d.batch(range(4)) for d in (hub, local))
    assert torch.equal(images, expected)
    named = [[hub.class_names[c] for c in labels], [local.class_names[c] for c in numbers]]
    assert named[0] == named[1] == ["dog", "person", "train", "train"]
    for found, wanted in zip(hub.label_sets, local.label_sets, strict=True):
        assert {hub.class_names[c] for c in found} == {local.class_names[c] for c in wanted}


def test_readings_count_any_hit(digits_vit: HookedViT, coco: Path) -> None:
    data = load_data(f"coco:{coco}", vit=digits_vit)
    data.batch_size = 3
    zs = ZeroShot(digits_vit, NAMES, "single")
    images, labels = data.batch(range(4))
    # class texts in the place of image embeddings, so that not one class takes every image
    zs.weights = torch.nn.functional.normalize(digits_vit(images), dim=-1).T[:, [0, 2, 3]]
    said = zs.logits(digits_vit(images)).argmax(-1)
    hits = [int(c) in shown for c, shown in zip(said, data.label_sets, strict=True)]
    assert hits[0]
    assert said[0] != labels[0]
    clt = random_clt(digits_vit)
    curves = ablation_curves(digits_vit, clt, data, zs)
    assert curves.readings["original"].any_hit == np.mean(hits)
    assert curves.readings["original"].top1 == (said == labels).double().mean()
    metrics = {m.name: m for m in curves.metrics()}
    assert metrics["full_any_hit"].baseline == np.mean(hits)
    assert metrics["full_any_hit"].value == curves.readings["full"].any_hit
    assert curves.to_frame()["any_hit"].between(0, 1).all()
    found = cascade(digits_vit, clt, data, zs, first_layers=[7])
    assert found.readings["original"].any_hit == np.mean(hits)
    table = found.to_frame()
    assert table["any_hit"].tolist() == [found.readings["cls_stream_7"].any_hit]
    assert table["any_hit_baseline"].tolist() == [np.mean(hits)]
    assert table["any_hit_floor_mean"].tolist() == [found.readings["cls_mean_7"].any_hit]


def test_a_command_says_what_is_left_out_and_writes_any_hit(
    digits_clt: Path,
    coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--clt", str(digits_clt), "--data", f"coco:{coco}", "--model", "digits"]
    assert main(["ablate", *where, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "images without a box left out: 1" in printed
    assert "any hit %" in printed
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    assert document["context"]["split"] == "val"
    assert "keep_1_any_hit" in {m["name"] for m in document["metrics"]}


@pytest.mark.skipif("VIT_CLT_DATA" not in os.environ, reason="VIT_CLT_DATA names no data folder")
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco_images(digits_vit: HookedViT, split: str) -> None:
    folder = Path(os.environ["VIT_CLT_DATA"]) / "data/coco_tiny"
    data = load_data(f"coco:{folder}", vit=digits_vit, split=split)
    images, labels = data.batch(range(len(data)))
    assert images.shape == (80, 3, 8, 8)
    assert data.class_names == COCO_CLASSES
    assert data.left_out == 0
    zs = ZeroShot(digits_vit, data.class_names, "single")
    assert zs.read(digits_vit(images), labels).top.shape == (80,)
    # the first image again, from the file itself
    content = json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
    first = content["images"][0]["id"]
    areas: dict[str, float] = {}
    names = {c["id"]: c["name"] for c in content["categories"]}
    for a in content["annotations"]:
        if a["image_id"] == first:
            name = names[a["category_id"]]
            areas[name] = areas.get(name, 0) + a["bbox"][2] * a["bbox"][3]
    assert data.class_names[labels[0]] == max(areas, key=areas.__getitem__)
    assert {data.class_names[c] for c in data.label_sets[0]} == set(areas)
    assert all(int(l) in shown for l, shown in zip(labels, data.label_sets, strict=True))
