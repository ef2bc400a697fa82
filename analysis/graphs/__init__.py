"""What one answer is made of: `direct_effects` on a logit, and an `attribution_graph` behind it.

`graph_study` does both for several images and measures how far interventions agree.
"""
