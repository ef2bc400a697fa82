"""Folders of transformers models: what is loaded from them, and what is refused before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from assertions import one_sentence
from builders import tiny_transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from vit_clt import InputError, ZeroShot
from vit_clt.cli import main
from vit_clt.hooks import HookedViT
from vit_clt.hooks.towers import load_transformers

LOADED = [
    "CLIPModel",
    "CLIPVisionModelWithProjection",
    "SiglipModel",
    "ViTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2Model",
    "Dinov2WithRegistersForImageClassification",
    "DINOv3ViTModel",
]
WORDS = ["[PAD]", "[EOS]", "[UNK]", "a", "photo", "of", "zero", "one", "."]


def images(size: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def picture(mode: str = "RGB") -> Image.Image:
    pixels = torch.randint(0, 256, (23, 31, 3), generator=torch.Generator().manual_seed(2))
    return Image.fromarray(pixels.byte().numpy()).convert(mode)


def saved(folder: Path, model: Any, kind: str | None = "CLIPImageProcessor", **options: Any) -> str:
    """The name by which a folder with this model and a preprocessing to 16 pixels is loaded."""
    model.save_pretrained(folder, **options)
    if kind is not None:
        processor = getattr(transformers, kind)
        size = {"height": 16, "width": 16}
        processor(size=size, crop_size=size, do_center_crop=True).save_pretrained(folder)
    return f"hf:{folder}"


def with_words(folder: Path) -> None:
    words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]"
    ).save_pretrained(folder)


def changed(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        HookedViT.load(name)
    one_sentence(error)
    assert len(str(error.value)) < 900


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would read or download weights fails the test."""

    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("began to load")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", load)
    monkeypatch.setattr(load_transformers, "check_weights", load)


# ---- what is loaded -------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOADED)
def test_a_folder_loads_exactly(name: str, tmp_path: Path) -> None:
    model = tiny_transformers(name)
    place = saved(tmp_path, model)
    vit = HookedViT.load(place)
    assert type(vit.model) is type(model)
    assert list(vit.state_dict()) == list(model.state_dict())
    assert vit.identity().weights_sha256 == HookedViT(model).identity().weights_sha256
    assert torch.equal(vit(images()), HookedViT(model)(images()))
    assert (vit.cfg.model, vit.cfg.pretrained, vit.cfg.family) == (place, None, "transformers")
    assert vit.cfg.image_size == (16, 16)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CLIPVisionModel", "CLIPImageProcessor"),
        ("SiglipVisionModel", "SiglipImageProcessor"),
        ("ViTModel", "ViTImageProcessor"),
        ("DeiTModel", "DeiTImageProcessor"),
        ("Dinov2Model", "BitImageProcessor"),
        ("DINOv3ViTModel", "DINOv3ViTImageProcessor"),
    ],
)
def test_pixels_are_those_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    vit = HookedViT.load(saved(tmp_path, tiny_transformers(name), kind))
    own = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(own).__name__ == kind
    expected = own(images=picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(vit.preprocess(picture()), expected[0])
    assert expected.shape == (1, 3, 16, 16)
    grey = vit.preprocess(picture("L"))
    assert torch.equal(
        grey, own(images=picture("L").convert("RGB"), return_tensors="pt")["pixel_values"][0]
    )
    assert repr(vit.preprocess) == repr(HookedViT.load(f"hf:{tmp_path}").preprocess)


def test_the_size_of_images_is_that_of_the_preprocessing(tmp_path: Path) -> None:
    model = tiny_transformers("Dinov2Model", image_size=28)
    vit = HookedViT.load(saved(tmp_path, model))
    assert (vit.cfg.image_size, vit.cfg.patch_grid) == ((16, 16), (4, 4))
    assert torch.equal(vit(images()), model(images()).pooler_output)


def test_a_folder_without_preprocessing_gives_none(tmp_path: Path) -> None:
    vit = HookedViT.load(saved(tmp_path, tiny_transformers("ViTModel"), None))
    assert vit.preprocess is None
    assert vit.cfg.image_size == (16, 16)


def test_a_pooler_that_the_weights_lack_is_left_out(tmp_path: Path) -> None:
    model = tiny_transformers("ViTModel")
    model.pooler = None
    vit = HookedViT.load(saved(tmp_path, model))
    assert vit.model.pooler is None
    assert torch.equal(vit(images()), model(images()).last_hidden_state[:, 0])


def test_shards_load_exactly(tmp_path: Path) -> None:
    model = tiny_transformers("ViTModel")
    place = saved(tmp_path, model, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(HookedViT.load(place)(images()), model(images()).pooler_output)
    index = tmp_path / "model.safetensors.index.json"
    first = min(json.loads(index.read_text())["weight_map"].values())
    (tmp_path / first).rename(tmp_path / "gone")
    refused(place, f"names the shard {first}, which is missing")
    index.write_text(index.read_text().replace(first, "../gone"))
    refused(place, "names the shard ../gone; expected files beside it")


def test_the_vision_tower_of_a_model_of_language(tmp_path: Path) -> None:
    clip = tiny_transformers("CLIPVisionModel")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(**sizes, intermediate_size=32, vocab_size=64)
    config = transformers.LlavaConfig(vision_config=clip.config, text_config=text)
    llava = transformers.LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(clip.state_dict())
    place = saved(tmp_path, llava)
    vit = HookedViT.load(f"{place}:vision_tower")
    assert torch.equal(vit(images()), clip(images()).pooler_output)
    assert vit.identity().weights_sha256 == HookedViT(clip).identity().weights_sha256
    refused(place, f'a LlavaForConditionalGeneration; expected "{place}:vision_tower"')
    refused(f"{place}:no_tower", "lack 55 of the tensors of a CLIPVisionModel")
    # as checkpoints of earlier versions name them
    tensors = load_file(tmp_path / "model.safetensors")
    older = {
        n.replace("vision_tower.", "vision_tower.vision_model."): t for n, t in tensors.items()
    }
    assert older != tensors
    save_file(older, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(HookedViT.load(f"{place}:vision_tower")(images()), vit(images()))


# ---- texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_texts_are_tokenized_as_the_folder_says(name: str, tmp_path: Path) -> None:
    model = tiny_transformers(name)
    place = saved(tmp_path, model)
    with pytest.raises(InputError, match=r"cannot be loaded: .*tokenizer\.json"):
        HookedViT.load(place).tokenizer(["a photo"])
    with_words(tmp_path)
    vit = HookedViT.load(place)
    tokens = vit.tokenizer(["a photo of one.", "a"])
    assert tokens.tolist() == [[3, 4, 5, 7, 8, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]]
    scores = ZeroShot(vit, ["zero", "one"], "single")
    unit = [
        vit(images()),
        model.get_text_features(
            vit.tokenizer(["a photo of a zero.", "a photo of a one."])
        ).pooler_output,
    ]
    cosines = torch.nn.functional.cosine_similarity(unit[0][:, None], unit[1][None], dim=-1)
    bias = model.logit_bias if name == "SiglipModel" else 0
    expected = model.logit_scale.exp() * cosines + bias
    torch.testing.assert_close(scores.logits(vit(images())), expected)


def test_texts_are_refused_without_a_text_tower(tmp_path: Path) -> None:
    vit = HookedViT.load(saved(tmp_path, tiny_transformers("CLIPVisionModel")))
    with pytest.raises(InputError, match="which has no text tower; expected one"):
        ZeroShot(vit, ["zero", "one"])


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("SwinForImageClassification", transformers.SwinConfig(), "a SwinForImageClassification;"),
        ("BeitModel", transformers.BeitConfig(), "a BeitModel;"),
        ("Siglip2Model", transformers.Siglip2Config(), "a Siglip2Model;"),
        ("CLIPTextModel", transformers.CLIPTextConfig(), "a CLIPTextModel;"),
        ("Dinov2Backbone", transformers.Dinov2Config(), "a Dinov2Backbone;"),
        (None, transformers.ViTConfig(), "a vit;"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(
    architecture: str | None, config: Any, said: str, tmp_path: Path
) -> None:
    config.architectures = architecture and [architecture]
    config.save_pretrained(tmp_path)
    refused(f"hf:{tmp_path}", said)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected from 1 to 256"),
        ({"image_size": [16, 10**6]}, "image_size is .*; expected from 1 to 4096"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"inner": {"patch_size": 0}}, "patch_size"),
        ({"quantization_config": {"quant_method": "x"}}, "names a quantization"),
        ({"model_type": "no_such_type"}, "cannot be loaded"),
    ],
)
def test_settings_out_of_range_are_refused_before_weights_are_read(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tiny_transformers("ViTModel").save_pretrained(tmp_path)
    changed(tmp_path, **values)
    refused(f"hf:{tmp_path}", said)


def test_no_code_beside_a_model_is_run(tmp_path: Path) -> None:
    place = saved(tmp_path, tiny_transformers("CLIPModel"))
    canary = tmp_path / "executed"
    (tmp_path / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    for file, part in [
        ("config.json", "AutoConfig"),
        ("config.json", "AutoModel"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ]:
        changed(tmp_path, file, auto_map={part: "own.Own"})
        HookedViT.load(place)
    # a kernel of the Hub is code as well
    changed(tmp_path, _attn_implementation="someone/kernel", attn_implementation="someone/kernel")
    assert HookedViT.load(place).model.config._attn_implementation == "sdpa"
    with_words(tmp_path)
    changed(tmp_path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    changed(tmp_path, "tokenizer_config.json", tokenizer_class="Own")
    HookedViT.load(place)
    changed(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Own"})
    refused(place, "cannot be loaded")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("a tensor less", "lack 1 of the tensors of a ViTModel, layernorm.weight among them"),
        ("NaN", "layernorm.weight holds NaN or infinite values"),
        ("integers", "layernorm.weight is I64; expected F32"),
        ("another width", "cannot be loaded"),
        ("fewer numbers", "asks for a model of .* numbers; expected at most"),
        ("a pickle", "has no model.safetensors; expected safetensors"),
        ("text", "is not a complete safetensors file"),
    ],
)
def test_other_weights_are_refused(fault: str, said: str, tmp_path: Path) -> None:
    place = saved(tmp_path, tiny_transformers("ViTModel"))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if fault == "a tensor less":
        tensors["a spare one"] = tensors.pop("layernorm.weight")
    elif fault == "NaN":
        tensors["layernorm.weight"][0] = torch.nan
    elif fault == "integers":
        tensors["layernorm.weight"] = tensors["layernorm.weight"].long()
    elif fault == "another width":
        tensors["layernorm.weight"] = torch.zeros(24)
    elif fault == "fewer numbers":
        changed(tmp_path, num_hidden_layers=9)
    save_file(tensors, path, {"format": "pt"})
    if fault == "a pickle":
        path.unlink()
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    elif fault == "text":
        path.write_text("no weights")
    refused(place, said)


def test_a_preprocessing_of_no_fixed_size_is_refused(tmp_path: Path) -> None:
    place = saved(tmp_path, tiny_transformers("Dinov2Model"))
    changed(tmp_path, "preprocessor_config.json", do_center_crop=False, size={"shortest_edge": 16})
    refused(place, "gives images of shapes .*; expected one of fixed height and width")
    changed(tmp_path, "preprocessor_config.json", size={"shortest_edge": 10**6})
    refused(place, "shortest_edge is 1000000; expected from 1 to 4096")


@pytest.mark.usefixtures("nothing_loads")
def test_names_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="carries its own weights, expected none"):
        HookedViT.load(f"hf:{tmp_path}", "some_tag")
    refused(f"hf:{tmp_path}", r"has no config\.json")
    transformers.ViTConfig(architectures=["ViTModel"]).save_pretrained(tmp_path)
    refused(f"hf:{tmp_path}:vision_tower", "with no vision tower; expected clip_vision_model")
    transformers.Siglip2Config(architectures=["Siglip2Model"]).save_pretrained(tmp_path)
    refused(f"hf:{tmp_path}:vision_model", 'with one of type "siglip2_vision_model"')
    refused(f"hf:{tmp_path}", "a Siglip2Model; expected one of the classes")


# ---- commands -------------------------------------------------------------------------------


def test_a_clt_is_trained_and_read_from_a_folder(tmp_path: Path) -> None:
    place = saved(tmp_path / "vit", tiny_transformers("DINOv3ViTModel", num_register_tokens=2))
    data = ["--model", place, "--data", "digits", "--limit", "40"]
    size = ["--n-features", "32", "--k", "4", "--epochs", "1"]
    clt, out = tmp_path / "clt", tmp_path / "reconstruct"
    assert main(["train", *data, *size, "--out", str(clt)]) == 0
    teacher = json.loads((clt / "config.json").read_text())["teacher"]
    assert teacher["model"] == place
    assert main(["reconstruct", *data, "--clt", str(clt), "--out", str(out)]) == 0
    assert (out / "metrics.json").is_file()
