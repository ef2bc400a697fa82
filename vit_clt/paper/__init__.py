"""Tables of arXiv 2604.13304 as files; `vit_clt.analysis.reproduction.published` reads them."""
