"""The model card (README.md) of a saved CLT: what it is, how it was made, what was measured.

YAML front matter as the Hugging Face Hub reads it, then Markdown. Everything comes from the
configuration and from one metrics.json; what these do not say is left out, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from huggingface_hub import ModelCardData

from vit_clt.errors import InputError
from vit_clt.transcoder.config import CLTConfig, TeacherIdentity
from vit_clt.transcoder.train_config import used_warmup

TAGS = [
    "interpretability",
    "vision-transformer",
    # what huggingface_hub's mixin adds to every card it writes
    "model_hub_mixin",
    "pytorch_model_hub_mixin",
]
_RUN_KEYS = ("data", "split", "images", "steps", "seed", "backend")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

MEANING = """\
C(s->l) says from which depth y_l can be sparsely read, not what MLP_s contributed: features of
layer s read the whole stream up to there, attention included, and a transcoder can be right about
outputs and wrong about mechanism. Read `centred` scores beside `projection` (the latter also counts
what is the same in every image), and every accuracy beside its loss and its floors."""

MEANING_PER_LAYER = """\
Every reconstruction y_l is decoded from features of layer l alone, so that C(s->l) is 0 off the
diagonal by construction and says nothing about depth: this is a baseline for cross-layer
transcoders. Features of layer l read the whole stream up to there, and a transcoder can be right
about outputs and wrong about mechanism. Read every accuracy beside its loss and its floors."""

LIMITS = """\
- It stands in for the MLPs of one ViT; on other weights or with another activation function its
  output means nothing.
- It was fitted on the unaltered model's activations: where several layers are replaced at once,
  errors compound.
- It has seen its training images' distribution only; measure again on your own images."""


def model_card(config: CLTConfig, report: Mapping[str, Any] | None = None) -> str:
    """The card's whole text.

    Args:
        config: what the CLT is.
        report: a parsed metrics.json (`vit_clt.metrics`) of this CLT; the card of None tells what
            it is and how to load it, without numbers.

    Raises:
        InputError: `report` is no such document, or is about a CLT of another shape.
    """
    context, metrics = _read_report(config, report)
    sections = [
        ("", _summary(config)),
        ("## Teacher", _teacher(config.teacher)),
        ("## Shape", _table(("what", "value"), _shape(config))),
        ("## Training", _table(("what", "value"), _training(config, context))),
        ("## Measured", _measured(context, metrics)),
        ("## Use", _use(config)),
        ("## What its attributions mean", MEANING if config.cross_layer else MEANING_PER_LAYER),
        ("## Limits", LIMITS),
    ]
    body = "\n\n".join(f"{title}\n\n{text}".strip() for title, text in sections if text)
    return f"---\n{_front_matter(config)}\n---\n\n# {_kind(config)} transcoder\n\n{body}\n"


def _kind(config: CLTConfig) -> str:
    return "Cross-layer" if config.cross_layer else "Per-layer"


def _front_matter(config: CLTConfig) -> str:
    teacher = config.teacher
    base = None if teacher is None else _base_model(teacher)
    data = ModelCardData(
        library_name="vit-clt",
        license="mit",
        tags=[f"{_kind(config).lower()}-transcoder", *TAGS],
        base_model=base,
        # the Hub would take a model that names a base for a fine-tune of it
        base_model_relation=None if base is None else "adapter",
    )
    return data.to_yaml()


def _base_model(teacher: TeacherIdentity) -> str | None:
    """The Hub repository that holds the teacher's weights, if they have one."""
    if teacher.model.startswith("hf-hub:"):
        name = teacher.model.removeprefix("hf-hub:")
    elif teacher.pretrained is not None:
        from open_clip.pretrained import get_pretrained_cfg

        known = get_pretrained_cfg(teacher.model, teacher.pretrained)
        name = known.get("hf_hub", "").rstrip("/")
    else:
        return None
    return name if _HUB_ID.fullmatch(name) else None


def _summary(config: CLTConfig) -> str:
    replaced = "a Vision Transformer" if config.teacher is None else _code(config.teacher.model)
    written = "its MLP output y_s alone"
    if config.cross_layer:
        written = "the MLP outputs y_l of all layers l >= s"
    skip = "\nA linear map of x_l is added to the reconstruction of y_l." if config.skip else ""
    return (
        "A sparse, linear-in-its-codes stand-in for the MLPs of all "
        f"{config.n_layers} layers of {replaced}.\nFeatures of layer s read that layer's MLP input "
        f"x_s and write to {written}.{skip}"
    )


def _teacher(teacher: TeacherIdentity | None) -> str:
    if teacher is None:
        return "It names no teacher: it attaches to any ViT of its depth and width."
    rows = [
        ("open_clip model", _code(teacher.model)),
        ("pretrained tag", "none" if teacher.pretrained is None else _code(teacher.pretrained)),
        ("activation function", _code(teacher.activation)),
        ("reads x_l at", _code(teacher.hook_in)),
        ("writes y_l at", _code(teacher.hook_out)),
        ("SHA-256 of the vision weights", _code(teacher.weights_sha256)),
    ]
    return _table(("what", "value"), rows)


def _shape(config: CLTConfig) -> list[tuple[str, str]]:
    values = dict(config.to_json()["sparsifier"])
    skip = [("skip connection", "W_skip x_l, of a layer's own input")] if config.skip else []
    name = values.pop("name")
    settings = ", ".join(f"{field} = {_number(value)}" for field, value in values.items())
    return [
        ("layers L", str(config.n_layers)),
        ("width d", str(config.d_model)),
        ("features F a layer", f"{config.n_features:,}"),
        ("sparsifier", f"{_code(name)}, {settings}"),
        *skip,
        ("parameters", f"{config.n_parameters():,}"),
    ]


def _training(config: CLTConfig, context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of a training run all it used; of a later measurement what it says about training."""
    trained_here = context.get("command") == "train"
    rows = [("data", context.get("trained_on"))]
    if trained_here:
        rows = [(name, context.get(name)) for name in _RUN_KEYS]
    settings = context.get("train")
    if isinstance(settings, Mapping):
        said = dict(rows)
        used = {**settings, **_options_in_use(config, settings.get("sparsity"))}
        steps, warmup = context.get("steps"), used.get("warmup_steps")
        if isinstance(steps, int) and isinstance(warmup, int):
            used["warmup_steps"] = used_warmup(warmup, steps)
        prefixes = used.get("matryoshka")
        if isinstance(prefixes, Sequence):
            used["matryoshka"] = " ".join(map(str, prefixes))
        rows += [(name, value) for name, value in used.items() if name not in said]
    return [(_text(name), _value(value)) for name, value in rows if _is_plain(value)]


def _options_in_use(config: CLTConfig, options: Any) -> dict[str, Any]:
    kind = config.sparsifier.training
    known = {field.name for field in fields(kind)}
    if not isinstance(options, Mapping) or not options.keys() <= known:
        return {}
    return kind(**options).in_use()


def _measured(context: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    columns = ("value", "low", "high", "unit", "n", "floor", "baseline")
    rows = []
    for metric in metrics:
        cells = [_value(metric.get(column)) for column in columns]
        if metric.get("value") is None:
            cells[0] = "undefined"
        rows.append((_code(str(metric.get("name"))), *cells))
    if not rows:
        return ""
    where = [
        f"{name} {_value(context[name])}"
        for name in ("data", "split", "tokens", "trajectory", "readout", "fill")
        if _is_plain(context.get(name))
    ]
    source = f"By `vit-clt {_text(str(context['command']))}`" if context.get("command") else ""
    head = f"{': '.join(part for part in (source, '; '.join(where)) if part)}.\n" if where else ""
    return (
        f"{head}`low` and `high` bound a 95 % interval, n counts images (token rows for "
        "`last_batch_` numbers),\n`floor` is what a trivial stand-in reaches, `baseline` the "
        "unaltered model; empty where a number\nhas none.\n\n" + _table(("number", *columns), rows)
    )


def _use(config: CLTConfig) -> str:
    teacher = config.teacher
    arguments = '"YOUR_MODEL"' if teacher is None else _literal(teacher.model)
    if teacher is not None and teacher.pretrained is not None:
        arguments += f", pretrained={_literal(teacher.pretrained)}"
    return f"""\
```python
from vit_clt import CrossLayerTranscoder
from vit_clt.hooks import HookedViT, replace_mlps

vit = HookedViT.load({arguments})
clt = CrossLayerTranscoder.from_pretrained("THIS_FOLDER_OR_HUB_ID")
with replace_mlps(vit, clt, layers=range({config.n_layers}), tokens="cls"):
    embeddings = vit.encode_image(images)
```"""


def _read_report(
    config: CLTConfig, report: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    if report is None:
        return {}, []
    context, metrics = report.get("context"), report.get("metrics")
    if not isinstance(context, Mapping) or not isinstance(metrics, list):
        raise InputError(
            "report", "holds no context and metrics; expected the document of a metrics.json."
        )
    if not all(isinstance(metric, Mapping) for metric in metrics):
        raise InputError("metrics of report hold other than objects; expected a list of objects.")
    measured = context.get("clt")
    if isinstance(measured, Mapping):
        own = json.loads(json.dumps(config.to_json()))
        for name in ("n_layers", "d_model", "n_features", "cross_layer", "skip", "sparsifier"):
            if name in measured and measured[name] != own[name]:
                raise InputError(
                    "report",
                    f"is about a CLT whose {name} is {measured[name]}; expected {own[name]}.",
                )
    return context, metrics


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(lines) if len(lines) > 2 else ""


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _value(value: Any) -> str:
    """A table cell; empty for what is not plain text or a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text(str(value)) if _is_plain(value) else ""
    return _number(value)


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _text(value: str) -> str:
    """One line that cannot end a table cell, a code span or a fence."""
    return " ".join(value.split()).replace("|", "/").replace("`", "'")


def _code(value: str) -> str:
    return f"`{_text(value) or ' '}`"


def _literal(value: str) -> str:
    """A Python string on one line, in double quotes, that cannot end the fence around it."""
    return json.dumps(value).replace("`", "\\u0060")
