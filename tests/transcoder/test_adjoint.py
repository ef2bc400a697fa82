"""The adjoint of decoding against sums entry by entry, and against the decoder itself."""

from __future__ import annotations

import pytest
import torch
from assertions import close
from builders import KINDS, noise, noisy_clt_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_clt import CrossLayerTranscoder, DenseCodes, InputError
from vit_clt.kernels.codes import Codes


def oracle(clt: CrossLayerTranscoder, codes: Codes, s: int, gradients: Tensor, first: int):
    """u_e by its definition, an entry, a direction and a target at a time."""
    entries = codes.entries()
    out = torch.zeros(len(gradients), len(entries.values), dtype=torch.float64)
    for r, by_layer in enumerate(gradients.flatten(2, -2)):
        for e, (t, i) in enumerate(zip(entries.rows, entries.indices, strict=True)):
            for l, at_l in enumerate(by_layer, start=first):
                if l in clt.config.targets(s):
                    out[r, e] += clt.decoder(s, l)[i].detach() @ at_l[t]
    return out


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    cross_layer=st.booleans(),
    s=st.integers(0, 2),
    first=st.integers(0, 2),
    n_layers=st.integers(0, 3),
    n_directions=st.integers(1, 3),
    written_out=st.booleans(),
    seed=st.integers(0, 99),
)
def test_units_and_effects_are_sums_over_targets(
    kind, cross_layer, s, first, n_layers, n_directions, written_out, seed
) -> None:
    clt = noisy_clt_of(kind, cross_layer=cross_layer, seed=seed)
    codes = clt.encode(noise(2, 3, 4, seed=seed), layer=s)
    if written_out:
        codes = DenseCodes(codes.to_dense())
    n_layers = min(n_layers, 3 - first)
    gradients = noise(n_directions, n_layers, 2, 3, 4, seed=seed + 1)
    adjoint = clt.decode_adjoint(codes, s)
    expected = oracle(clt, codes, s, gradients, first)
    close(adjoint.units(gradients, first), expected)
    close(adjoint.effects(gradients, first), expected * codes.entries().values.detach())
    # of one reading alone, with and without an axis for it
    close(adjoint.units(gradients[0], first), expected[0])
    close(adjoint.units(gradients[:1], first), expected[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_effects_sum_to_what_the_source_writes(kind: str) -> None:
    clt = noisy_clt_of(kind)
    codes, gradients = clt.encode(noise(3, 6, 4)), noise(3, 6, 4, seed=5)
    written = sum(
        (clt.contributions(codes, l)[s] * gradients[l]).sum() for s in range(3) for l in range(s, 3)
    )
    effects = [clt.decode_adjoint(codes[s].active(), s).effects(gradients).sum() for s in range(3)]
    close(sum(effects), written)


def test_the_decoder_of_a_target_is_what_a_unit_writes_there() -> None:
    for cross_layer in (True, False):
        clt = noisy_clt_of(cross_layer=cross_layer)
        for s in range(3):
            unit = torch.eye(8, dtype=torch.float64)
            for l in clt.config.targets(s):
                close(clt.decoder(s, l), clt.contributions({s: DenseCodes(unit)}, l)[0])
    assert torch.equal(clt.decoder(-1, -1), clt.W_dec[2][0])


def test_wrong_arguments_are_refused() -> None:
    clt = noisy_clt_of()
    codes = clt.encode(noise(2, 3, 4), layer=1)
    adjoint = clt.decode_adjoint(codes, 1)
    with pytest.raises(InputError, match=r"target is 0; expected .* source 1 writes to, from 1 to"):
        clt.decoder(1, 0)
    with pytest.raises(InputError, match="source is 3"):
        clt.decode_adjoint(codes, 3)
    with pytest.raises(InputError, match="codes have 5 features; expected 8"):
        clt.decode_adjoint(DenseCodes(noise(2, 3, 5)), 1)
    for shape in ((3, 2, 3, 5), (3, 6, 4), (2, 3, 4)):
        with pytest.raises(InputError, match=r"gradients have shape .*axes \(2, 3, 4\) after it"):
            adjoint.units(noise(*shape))
