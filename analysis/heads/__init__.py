"""What each attention head adds to an answer, and what it carries there; attention beside MLPs.

`head_study` takes the label's logit apart by head and layer, asks whether ablation of single heads
agrees, and names the features that the strongest heads carry.
"""
