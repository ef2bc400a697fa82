"""How a step is computed: codes, and exact encoders and decoders for dense and for sparse ones.

`codes` holds the layouts, `entries` their flat lists; `dense`, `sparse` and `jump` are the back
ends that `choose` picks from; `chunks`, `topk`, `bags` and `gpu` are what they are made of, and
`screening` a shorter way to top-k codes, by the bounds of `rounding`. `rows` lends it threads.
"""
