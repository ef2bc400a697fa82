"""What ablation of a layer does in the ViT itself, and with a CLT in the place of its MLPs.

`causal_effects` measures the ViT alone, `causal_agreement` asks whether a score ranks layers as its
effects do, and `surrogate_causality` whether the same ablations change the surrogate alike.
"""
