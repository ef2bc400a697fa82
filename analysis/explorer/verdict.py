"""The verdict of an earlier audit, read from its folder, to stand on every page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.errors import InputError
from vit_clt.inputs import check_mapping, read_json, reading
from vit_clt.transcoder.identity import weights_sha256
from vit_clt.transcoder.model import CrossLayerTranscoder

_COMMANDS = ("audit", "claims")


@dataclass(frozen=True)
class Verdict:
    """What `vit-clt audit` or `vit-clt claims` found on a CLT."""

    verdict: str | None
    """The audit's verdict: "supported", "mixed" or "unsupported"; None of `claims`."""
    claims: list[str]
    """The verdicts on what C and E claim."""
    data: str
    n: int
    """Number of images."""
    tokens: str
    """Token rows that were audited."""
    target: int
    """The layer that was audited."""

    @property
    def short(self) -> str:
        """The verdict in a few words."""
        claims = [claim.split(" (")[0] for claim in self.claims]
        audit = [] if self.verdict is None else [f"attribution {self.verdict}"]
        return "; ".join([*audit, *claims])

    @property
    def holds(self) -> bool:
        """Whether nothing that was tested is refuted or in doubt."""
        return self.verdict in (None, "supported") and not any(
            "unsupported" in claim for claim in self.claims
        )

    @property
    def place(self) -> str:
        """The rows and the layer that were audited."""
        return f"{ROW_NAMES.get(self.tokens, self.tokens)} of layer {self.target}"

    @property
    def text(self) -> str:
        """The verdict in one sentence."""
        audit = [] if self.verdict is None else [f"attribution {self.verdict}"]
        found = "; ".join([*audit, *self.claims])
        return f"Audit of {self.place} on {self.data}, N = {self.n}: {found}"

    def to_json(self) -> dict[str, Any]:
        """The fields, as written to metrics.json."""
        return asdict(self)


def read_verdict(folder: Path | str, clt: CrossLayerTranscoder) -> Verdict:
    """Read the verdict on a CLT from the output folder of `vit-clt audit` or `vit-clt claims`.

    Raises:
        InputError: the folder holds no such output, or that of another CLT.
    """
    path = Path(folder) / "metrics.json"
    document = read_json(path)
    context = check_mapping(document.get("context"), path, "the context of a metrics.json")
    if context.get("command") not in _COMMANDS:
        raise InputError(
            "audit",
            f"is {folder}, whose metrics.json is of {context.get('command', 'no command')}; "
            "expected the output folder of vit-clt audit or vit-clt claims.",
        )
    if context.get("weights_sha256") != weights_sha256(clt):
        raise InputError(
            "audit",
            f"is {folder}, which is of another CLT ({context.get('clt', 'unknown')}), or was made "
            "before audits named theirs; expected an audit of the CLT that is shown.",
        )
    with reading(path, "the facts of an audit", field="audit"):
        verdict = context.get("verdict")
        return Verdict(
            None if verdict is None else str(verdict),
            [str(claim) for claim in context["claims"]],
            str(context["data"]),
            int(context["n_images"]),
            str(context["tokens"]),
            int(context["target"]),
        )
