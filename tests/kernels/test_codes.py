"""Every layout of codes answers every question as the dense matrix does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vit_clt.kernels.codes import Codes, DenseCodes, RaggedCodes, SparseCodes

LAYERS, IMAGES, TOKENS, SLOTS, F = 2, 3, 4, 3, 7


def dense_matrix() -> tuple[Tensor, SparseCodes]:
    """Signed codes "layer image token feature", written out and as slots, of which one is 0."""
    generator = torch.Generator().manual_seed(0)
    axes = (LAYERS, IMAGES, TOKENS)
    indices = torch.rand(*axes, F, generator=generator).argsort(-1)[..., :SLOTS]
    values = torch.randn(*axes, SLOTS, generator=generator)
    values[..., 1] = 0
    values[0, 1, 2] = 0  # a token without any active feature
    z = torch.zeros(*axes, F)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in axes)).tolist():
        for slot in range(SLOTS):
            z[(*place, indices[(*place, slot)])] = values[(*place, slot)]
    return z, SparseCodes(values, indices, F)


def layouts() -> dict[str, Codes]:
    z, sparse = dense_matrix()
    entries = sparse.entries()
    ragged = RaggedCodes(*(entries.values, entries.indices, entries.offsets), sparse.tokens, F)
    return {"sparse": sparse, "ragged": ragged, "dense": DenseCodes(z)}


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("name", ["sparse", "ragged", "dense"])
def test_every_layout_is_the_dense_matrix(name: str, layer: int | None) -> None:
    z, codes = dense_matrix()[0], layouts()[name]
    if layer is not None:
        z, codes = z[layer], codes[layer]
    assert isinstance(codes, Codes)
    assert (codes.tokens, codes.n_features, len(codes)) == (z.shape[:-1], F, len(z))
    assert torch.equal(codes.to_dense(), z)
    assert torch.equal(codes.l0(), (z != 0).sum(-1))
    assert torch.equal(codes.at_features([5, 0]), z[..., [5, 0]])
    assert torch.equal(codes.at_rows(slice(1, 3)).to_dense(), z[..., 1:3, :])
    assert codes.layout == ("dense" if name == "dense" else "sparse")
    assert codes.density() == pytest.approx(1 if name == "dense" else SLOTS / F)

    # a flat list of entries, token after token
    for found in (codes.entries(), codes.active().entries()):
        flat = torch.zeros(z[..., 0].numel(), F)
        flat[found.rows, found.indices] = found.values
        assert torch.equal(flat.view(z.shape), z)
        assert torch.equal(found.rows.bincount(minlength=len(flat)), found.offsets.diff())
    active = codes.active()
    assert (active.values != 0).all()
    assert torch.equal(active.to_dense(), z)
    assert torch.equal(active.offsets.diff().view(active.tokens), codes.l0())

    # the transpose of writing out: <written out, other> = <stored, what other holds there>
    other = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    stored = codes.dense if isinstance(codes, DenseCodes) else codes.values
    torch.testing.assert_close((stored * codes.read(other)).sum(), (z * other).sum())


def test_bytes_are_those_of_the_tensors_held() -> None:
    found = {name: codes.nbytes() for name, codes in layouts().items()}
    n_tokens = LAYERS * IMAGES * TOKENS
    assert found["dense"] == 4 * n_tokens * F
    assert found["sparse"] == (4 + 8) * n_tokens * SLOTS
    assert found["ragged"] == found["sparse"] + 8 * (n_tokens + 1)
