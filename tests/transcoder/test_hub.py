"""Model cards, and publishing to a stand-in of the Hub and loading back from it."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from assertions import one_sentence, same_clt
from builders import noisy_clt
from huggingface_hub import ModelCard, constants
from oracles.hub_stand_in import TOKEN, HubStandIn, hub_stand_in

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.metrics import Metric, metrics_json
from vit_clt.transcoder.config import TeacherIdentity
from vit_clt.transcoder.model_card import model_card

# huggingface_hub's own: its LFS upload hands files over in a way that its HTTP client deprecates,
# and an upload that fails leaves its temporary folder to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

TEACHER = TeacherIdentity(
    "ViT-B-32-quickgelu",
    "openai",
    "QuickGELU",
    "blocks.{l}.ln2.hook_out",
    "blocks.{l}.hook_mlp_out",
    "0123456789abcdef" * 4,
)
CONFIG = CLTConfig(3, 4, 8, ReLUTopK(k=3), teacher=TEACHER)
METRICS = [
    Metric("replaced_cls_top1", 0.75, "fraction", 321, 0.71, 0.79, floor=0.125, baseline=0.875),
    Metric("r2_cls", float("nan"), "fraction", 321, floor=0.0),
]


def report(**context: object) -> dict:
    """A training run's metrics.json, parsed."""
    settings = {"lr": 2e-4, "epochs": 10, "seed": 5, "l0": None, "warmup_steps": 1000}
    values = {"command": "train", "data": "digits", "split": "train", "seed": 5}
    values |= {"train": settings, "clt": CONFIG.to_json(), "steps": 777, **context}
    return json.loads(metrics_json(METRICS, **values))


def build(config: CLTConfig = CONFIG, seed: int = 0) -> CrossLayerTranscoder:
    return noisy_clt(config, seed, torch.float32)


def cells(card: str, first: str) -> list[str]:
    """The other cells of the one table row whose first cell is `first`."""
    rows = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if row[0].strip().strip("`") == first]
    return [cell.strip() for cell in row[1:]]


# ---- the card -------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads():
    data = ModelCard(model_card(CONFIG)).data
    assert (data.library_name, data.license) == ("vit-clt", "mit")
    assert {"interpretability", "pytorch_model_hub_mixin"} <= set(data.tags)
    # open_clip's own table says where these weights live
    assert data.base_model == "timm/vit_base_patch32_clip_224.openai"
    assert data.base_model_relation == "adapter"


@pytest.mark.parametrize(
    ("model", "pretrained", "base"),
    [
        ("hf-hub:laion/CLIP-x", None, "laion/CLIP-x"),
        ("digits", None, None),
        ("local-dir:/somewhere/a", None, None),
        ("ViT-B-32-quickgelu", None, None),
        ("ViT-B-32-quickgelu", "weights/of/mine.pt", None),
        ("hf-hub:not an id", None, None),
    ],
)
def test_only_a_true_hub_id_is_a_base_model(model, pretrained, base):
    teacher = dataclasses.replace(TEACHER, model=model, pretrained=pretrained)
    data = ModelCard(model_card(dataclasses.replace(CONFIG, teacher=teacher))).data
    assert data.base_model == base
    assert (data.get("base_model_relation") is None) == (base is None)


def test_the_card_says_what_it_is_how_to_load_it_and_what_scores_mean():
    card = model_card(CONFIG)
    assert cells(card, "pretrained tag") == ["`openai`"]
    assert cells(card, "SHA-256 of the vision weights") == [f"`{TEACHER.weights_sha256}`"]
    assert cells(card, "sparsifier") == ["`relu_topk`, k = 3"]
    assert cells(card, "parameters") == ["324"]
    assert CONFIG.n_parameters() == 324
    assert 'HookedViT.load("ViT-B-32-quickgelu", pretrained="openai")' in card
    assert "not what MLP_s contributed" in " ".join(card.split())
    assert "## Measured" not in card
    assert "## Training" not in card
    assert "names no teacher" in model_card(dataclasses.replace(CONFIG, teacher=None))
    assert "theta = 0.2" in model_card(CLTConfig(3, 4, 8, JumpReLU(theta=0.2)))


def test_the_python_on_the_card_compiles():
    for teacher in (TEACHER, None, dataclasses.replace(TEACHER, model='a"`\n```\\')):
        card = model_card(dataclasses.replace(CONFIG, teacher=teacher))
        code = card.split("```python\n")[1].split("\n```\n")[0]
        assert "from_pretrained" in code
        compile(code, "card", "exec")


def test_the_card_shows_the_run_and_its_numbers():
    card = model_card(CONFIG, report())
    assert cells(card, "data") == ["digits"]
    assert cells(card, "split") == ["train"]
    assert cells(card, "steps") == ["777"]
    assert cells(card, "warmup_steps") == ["39"]  # 5 % of them, fewer than the setting
    assert cells(card, "lr") == ["0.0002"]
    assert cells(card, "seed") == ["5"]  # once, though it is in the run and in its settings
    assert cells(card, "replaced_cls_top1") == (
        ["0.75", "0.71", "0.79", "fraction", "321", "0.125", "0.875"]
    )
    assert cells(card, "r2_cls") == ["undefined", "", "", "fraction", "321", "0", ""]
    assert "None" not in card
    assert "nan" not in card


def test_a_later_measurement_does_not_pass_for_the_training_data():
    card = model_card(CONFIG, report(command="demo", split="test", trained_on="digits (train)"))
    training, measured = card.split("## Training")[1].split("## Measured")
    assert "| data | digits (train) |" in training
    assert "split" not in training
    assert "By `vit-clt demo`: data digits; split test." in measured


def test_what_a_report_does_not_say_is_left_out():
    assert model_card(CONFIG, {"context": {}, "metrics": []}) == model_card(CONFIG)
    card = model_card(CONFIG, {"context": {"train": None}, "metrics": [{"name": "a", "value": 1}]})
    assert cells(card, "a") == ["1", "", "", "", "", "", ""]
    assert "## Training" not in card


@pytest.mark.parametrize("document", [{}, {"context": {}}, {"context": {}, "metrics": [1]}])
def test_a_report_that_is_none_is_refused(document):
    with pytest.raises(InputError, match=r"of report|report holds no") as error:
        model_card(CONFIG, document)
    one_sentence(error)


@pytest.mark.parametrize(
    "change", [{"n_features": 9}, {"sparsifier": AbsTopK(k=3)}, {"sparsifier": ReLUTopK(k=2)}]
)
def test_a_report_about_another_clt_is_refused(change):
    other = dataclasses.replace(CONFIG, **change)
    with pytest.raises(InputError, match=f"whose {next(iter(change))} is") as error:
        model_card(other, report())
    one_sentence(error)


def test_names_cannot_break_the_card():
    nasty = "x|`y`\n---\n# title: [z"
    teacher = dataclasses.replace(TEACHER, model=nasty, pretrained=nasty, activation=nasty)
    card = model_card(dataclasses.replace(CONFIG, teacher=teacher), report(data=nasty, clt=None))
    plain = model_card(CONFIG, report())
    assert ModelCard(card).data.tags == ModelCard(plain).data.tags
    assert cells(card, "activation function") == ["`x/'y' --- # title: [z`"]
    titles = [line for line in plain.splitlines() if line.startswith("#")]
    assert [line for line in card.splitlines() if line.startswith("#")] == titles


def test_saving_writes_this_card_through_the_mixin(tmp_path):
    build().save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "README.md").read_text() == model_card(CONFIG)
    build().save_pretrained(tmp_path / "b", model_card_kwargs={"report": report()})
    assert (tmp_path / "b" / "README.md").read_text() == model_card(CONFIG, report())


# ---- the Hub --------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A stand-in that huggingface_hub takes for the Hub, logged in."""
    with hub_stand_in() as stand_in:
        template = stand_in.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield stand_in
        huggingface_hub.close_session()
        gc.collect()  # here, where the warning is expected, and not in another file's test


def load(name: str, cache: Path) -> CrossLayerTranscoder:
    return CrossLayerTranscoder.from_pretrained(name, cache_dir=cache)


@pytest.mark.parametrize(
    "sparsifier", [ReLUTopK(k=3), AbsTopK(k=3), JumpReLU()], ids=lambda each: each.name
)
def test_a_pushed_clt_loads_by_its_id(hub, tmp_path, sparsifier):
    clt = build(dataclasses.replace(CONFIG, sparsifier=sparsifier))
    url = clt.push_to_hub("me/clt")
    assert url == f"{hub.endpoint}/me/clt/commit/{hub.commits['me/clt']}"
    assert set(hub.repositories["me/clt"]) == {"config.json", "model.safetensors", "README.md"}
    same_clt(load("me/clt", tmp_path / "cache"), clt)
    steps = ["create", "validate", "preupload", "batch", "store", "commit", "resolve"]
    assert [step.split()[1] for step in dict.fromkeys(hub.asked)][:7] == steps


def test_a_second_push_replaces_the_first(hub, tmp_path):
    build().push_to_hub("me/clt")
    newer = build(dataclasses.replace(CONFIG, n_features=6), seed=1)
    newer.push_to_hub("me/clt")
    same_clt(load("me/clt", tmp_path / "cache"), newer)


def test_the_pushed_card_is_valid_and_carries_the_numbers(hub):
    build().push_to_hub("me/clt", model_card_kwargs={"report": report()})
    text = hub.repositories["me/clt"]["README.md"].decode()
    assert text == model_card(CONFIG, report())
    hub.asked.clear()
    ModelCard(text).validate()
    assert hub.asked == ["POST validate"]
    with pytest.raises(ValueError, match="license"):  # the stand-in does look
        ModelCard(text.replace("license: mit", "license: mine")).validate()


def test_saving_with_push_uploads_the_folders_own_card(hub, tmp_path):
    folder = tmp_path / "clt"
    build().save_pretrained(folder)
    (folder / "README.md").write_text(model_card(CONFIG, report()) + "\nMy remark.\n")
    build().save_pretrained(folder, push_to_hub=True, repo_id="me/clt")
    pushed = hub.repositories["me/clt"]["README.md"]
    assert pushed == (folder / "README.md").read_bytes()
    assert b"My remark." in pushed


@pytest.mark.parametrize("text", ["---\na: [\n---\n", "---\n- a\n---\n"])
def test_a_card_of_broken_yaml_is_not_pushed(hub, tmp_path, text):
    build().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(InputError, match="is not a readable model card") as error:
        build().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/clt")
    one_sentence(error)
    assert hub.asked == []
    assert (tmp_path / "README.md").read_text() == text


def test_a_card_that_the_hub_refuses_leaves_nothing_there(hub, tmp_path):
    build().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlibrary_name: vit-clt\nlicense: mine\n---\n")
    with pytest.raises(InputError, match="\"license\" is 'mine'") as error:
        build().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/clt")
    one_sentence(error)
    assert hub.repositories["me/clt"] == {}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_the_right_token_pushing_is_refused(hub, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r'repo_id is "me/clt".*HTTP 401.*token') as error:
        build().push_to_hub("me/clt", token=token)
    assert hub.endpoint in one_sentence(error)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("step", "status"), [("PUT store", 507), ("POST commit", 500), ("POST batch", 403)]
)
def test_an_upload_that_breaks_loses_nothing(hub, tmp_path, step, status):
    older = build()
    older.push_to_hub("me/clt")
    published = dict(hub.repositories["me/clt"])
    newer, folder = build(seed=1), tmp_path / "clt"
    newer.save_pretrained(folder)
    local = {file.name: file.read_bytes() for file in folder.iterdir()}

    hub.failing = {step: status}
    with pytest.raises(InputError, match=f"HTTP {status}") as error:
        newer.save_pretrained(folder, push_to_hub=True, repo_id="me/clt")
    one_sentence(error)
    assert hub.asked[-1] == step
    assert hub.repositories["me/clt"] == published
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == local

    hub.failing = {}
    newer.save_pretrained(folder, push_to_hub=True, repo_id="me/clt")
    same_clt(load("me/clt", tmp_path / "cache"), newer)


def test_a_hub_that_cannot_be_reached_and_a_name_that_is_none_are_one_sentence(hub, monkeypatch):
    with pytest.raises(InputError, match='repo_id is "a/b/c"') as error:
        build().push_to_hub("a/b/c")
    one_sentence(error)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1 did not take") as error:
        build().push_to_hub("me/clt")
    one_sentence(error)


def test_loading_what_the_hub_does_not_have_is_refused(hub, tmp_path):
    with pytest.raises(InputError, match="nor such a repository on the Hub") as error:
        load("me/absent", tmp_path / "cache")
    assert "me/absent" in one_sentence(error)
    build().push_to_hub("me/clt")
    for name in ("model.safetensors", "config.json"):
        del hub.repositories["me/clt"][name]
        hub.commits["me/clt"] = "f" * 39 + str(len(name) % 10)
        with pytest.raises(InputError, match="in that repository") as error:
            load("me/clt", tmp_path / name)
        assert name in one_sentence(error)


def test_a_broken_config_on_the_hub_is_refused(hub, tmp_path):
    build().push_to_hub("me/clt")
    hub.repositories["me/clt"]["config.json"] = b"{"
    with pytest.raises(InputError, match="is not readable JSON") as error:
        load("me/clt", tmp_path / "cache")
    one_sentence(error)


def test_files_of_two_uploads_are_refused(hub, tmp_path):
    build().push_to_hub("me/clt")
    weights = hub.repositories["me/clt"]["model.safetensors"]
    build(dataclasses.replace(CONFIG, sparsifier=AbsTopK(k=2))).push_to_hub("me/clt")
    hub.repositories["me/clt"]["model.safetensors"] = weights
    with pytest.raises(InputError, match="must be of one save") as error:
        load("me/clt", tmp_path / "cache")
    one_sentence(error)


SCRIPT = """
import sys
from huggingface_hub import ModelCard
from vit_clt import CrossLayerTranscoder
clt = CrossLayerTranscoder.from_pretrained(sys.argv[1])
clt.push_to_hub("me/again")
assert CrossLayerTranscoder.from_pretrained("me/again").config == clt.config
card = ModelCard.load("me/again")
card.validate()
card.push_to_hub("me/again")
"""


def test_a_user_reaches_it_with_the_documented_variables(tmp_path):
    """A process of its own: nothing patched, only what huggingface_hub documents."""
    build().save_pretrained(tmp_path / "clt")
    with hub_stand_in() as hub:
        variables = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "clt")],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        pushed = hub.repositories["me/again"]
    for name in ("config.json", "model.safetensors", "README.md"):
        assert pushed[name] == (tmp_path / "clt" / name).read_bytes()
    assert yaml.safe_load(pushed["README.md"].decode().split("---\n")[1])["license"] == "mit"
