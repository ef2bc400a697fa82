"""The verdict of an earlier audit, read from its folder, to stand on every page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vit_clt.errors import InputError
from vit_clt.inputs import check_mapping, read_json
from vit_clt.transcoder.identity import encoder_sha256
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
    target: int
    """The layer that was audited."""

    @property
    def short(self) -> str:
        """The verdict in a few words."""
        return self.verdict or "; ".join(claim.split(" (")[0] for claim in self.claims)

    @property
    def holds(self) -> bool:
        """Whether nothing that was tested is refuted or in doubt."""
        return self.verdict in (None, "supported") and not any(
            "unsupported" in claim for claim in self.claims
        )

    @property
    def text(self) -> str:
        """The verdict in one sentence."""
        audit = "" if self.verdict is None else f"attribution {self.verdict}; "
        return f"Audit of layer {self.target} on {self.data}, N = {self.n}: {audit}" + "; ".join(
            self.claims
        )

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
    if context.get("encoder_sha256") != encoder_sha256(clt):
        raise InputError(
            "audit",
            f"is {folder}, which is of another CLT ({context.get('clt', 'unknown')}), or was made "
            "before audits named theirs; expected an audit of the CLT that is shown.",
        )
    n = max((int(metric.get("n", 0)) for metric in document["metrics"]), default=0)
    return Verdict(
        context.get("verdict"),
        [str(claim) for claim in context.get("claims", [])],
        str(context["data"]),
        n,
        int(context["target"]),
    )
