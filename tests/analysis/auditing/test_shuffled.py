"""Terms dealt to sources by chance: sums stay, shares become equal, passes agree."""

import torch
from builders import random_clt

from vit_clt.analysis import contribution_scores
from vit_clt.analysis.auditing.controls import ShuffledSources
from vit_clt.hooks.activations import capture


def test_reconstructions_stay_and_terms_are_the_same_set(tiny_vit, images):
    clt = random_clt(tiny_vit)
    shuffled = ShuffledSources.of(clt)
    x = capture(tiny_vit, images).x
    codes = clt.encode(x)
    assert torch.equal(shuffled.encode(x).to_dense(), codes.to_dense())
    assert torch.equal(shuffled.decode(codes), clt.decode(codes))
    terms, dealt = clt.contributions(codes, 3), shuffled.contributions(codes, 3)
    assert not torch.equal(terms, dealt)
    norms = (each.norm(dim=-1).sort(0).values for each in (terms, dealt))
    torch.testing.assert_close(*norms)
    torch.testing.assert_close(dealt.sum(0), terms.sum(0))


def test_every_order_of_sources_is_as_likely_and_a_second_pass_agrees(tiny_vit):
    many = torch.randn(400, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    clt = random_clt(tiny_vit)
    shuffled = ShuffledSources.of(clt)
    codes = clt.encode(capture(tiny_vit, many).x)
    dealt, again = (shuffled.contributions(codes, 3) for _ in range(2))
    assert torch.equal(dealt, again)
    # where did the deepest term go? each of 4 places for a quarter of 4,000 rows
    home = (dealt - clt.contributions(codes, 3)[3]).norm(dim=-1).argmin(0).flatten()
    counts = home.bincount(minlength=4).double()
    chi2 = ((counts - len(home) / 4) ** 2 / (len(home) / 4)).sum()
    assert chi2 < 16.3, counts  # 0.999 quantile, 3 degrees of freedom


def test_scores_become_equal_shares(tiny_vit):
    many = torch.randn(400, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    clt = random_clt(tiny_vit)
    before = contribution_scores(tiny_vit, clt, many, tokens="all").matrix[3]
    after = contribution_scores(tiny_vit, ShuffledSources.of(clt), many, tokens="all").matrix[3]
    assert after.std() < 0.2 * before.std()
    torch.testing.assert_close(after.sum(), before.sum())
