"""What single features respond to, and what they do.

`feature_statistics` gathers them in one pass, `statistics` and `gallery` show them, `effects` says
what a feature writes towards each class.
"""
