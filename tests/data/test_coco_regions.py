"""COCO's boxes and outlines: what is drawn, and what is refused in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from assertions import one_sentence
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data.coco_regions import Region, read_regions
from vit_clt.hooks import HookedViT

SIZE = (10, 12)
OUTLINE = [[1.0, 1.0, 5.0, 1.0, 5.0, 6.0, 1.0, 6.0]]
RUNS = [25, 5, 90]  # five pixels of column 2, from row 5 on


def document(segmentation: object = OUTLINE, height: object = 10) -> dict:
    box = {"image_id": 1, "category_id": 9, "bbox": [1, 1, 4, 5]}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": height, "width": 12},
            {"id": 2, "file_name": "b.png", "height": 10, "width": 12},
        ],
        "annotations": [
            {**box, "segmentation": segmentation},
            {"image_id": 2, "category_id": 3, "bbox": [0, 0, 12, 10]},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def written(tmp_path: Path, content: dict) -> Path:
    path = tmp_path / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return path


def test_a_box_covers_its_pixels():
    drawn = np.asarray(Region(0, SIZE, (2.0, 1.0, 3.0, 4.0), ()).boxed())
    expected = np.zeros(SIZE)
    expected[1:5, 2:5] = 255
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    "box", [(2.0, 1.0, 0.0, 4.0), (2.6, 1.0, 0.2, 4.0), (20.0, 20.0, 5.0, 5.0)]
)
def test_a_box_without_a_pixel_covers_none(box: tuple):
    assert not np.asarray(Region(0, SIZE, box, ()).boxed()).any()


def test_the_runs_of_a_crowd_go_down_columns():
    drawn = np.asarray(Region(0, SIZE, (0.0, 0.0, 1.0, 1.0), (), tuple(RUNS)).outlined())
    expected = np.zeros(SIZE)
    expected[5:10, 2] = 255
    np.testing.assert_array_equal(drawn, expected)


def test_regions_come_by_image_with_numbers_of_labels(tmp_path: Path):
    path = written(tmp_path, document({"counts": RUNS, "size": [10, 12]}))
    [two], [one] = read_regions(path, [2, 1])
    assert (two.category, two.box, two.polygons) == (0, (0, 0, 12, 10), ())
    assert (one.category, one.size, one.runs) == (1, SIZE, tuple(RUNS))
    # an annotation without an outline counts with its box
    np.testing.assert_array_equal(two.outlined(), two.boxed())


def test_an_outline_without_a_box_counts_with_the_one_around_it(tmp_path: Path):
    content = document()
    content["annotations"][0]["bbox"] = []
    [[region]] = read_regions(written(tmp_path, content), [1])
    assert region.box == (1, 1, 4, 5)
    del content["annotations"][0]["segmentation"]
    assert read_regions(written(tmp_path, content), [1]) == [[]]


def test_loaded_images_have_those_of_their_own(tmp_path: Path, tiny_vit: HookedViT):
    (tmp_path / "annotations").mkdir()
    written(tmp_path / "annotations", document())
    (tmp_path / "val2017").mkdir()
    for name in "ab":
        Image.new("RGB", (12, 10)).save(tmp_path / "val2017" / f"{name}.png")
    tiny_vit.preprocess = lambda image: None
    data = load_data(f"coco:{tmp_path}", vit=tiny_vit, split="val")
    [[first], [second]] = data.regions()
    assert data.class_names == ["cat", "dog"]
    assert (first.category, second.category) == (1, 0)
    assert first.polygons == (tuple(OUTLINE[0]),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (document({"counts": "Q2`3", "size": [10, 12]}), "has segmentation"),
        (document({"counts": [3, 4], "size": [10, 12]}), "run lengths of all 120 pixels"),
        (document({"counts": RUNS, "size": [12, 10]}), "has segmentation"),
        (document([[1, 2, 3]]), "polygons x, y"),
        (document([[1, 2, "x", 4]]), "polygons x, y"),
        (document(height=None), "has height and width (None, 12)"),
    ],
)
def test_what_is_no_region_is_refused(content: dict, said: str, tmp_path: Path):
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_regions(path, [1, 2])
    assert said in one_sentence(error)
