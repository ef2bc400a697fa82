"""Statistics that all studies share: they know images and readings, but no study.

`Interval` (a number with its interval, by bootstrap), `Reading` and `Readings` (accuracy and loss,
paired), rank agreement, similarity, means by position, donors, random halves, random features of
equal rate, nearest neighbours, names.
"""
