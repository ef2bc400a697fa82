"""What the ViT's own layers do, without a CLT: total and direct effects of their ablation.

`causal_effects` measures them, `causal_agreement` asks whether a score ranks layers as they do.
"""
