"""Statistics that all studies share: they know images and zero-shot readings, but no study.

`bootstrap_means` and `interval` (intervals), `Readings` (accuracies and losses with paired
intervals), rank agreement, similarity, means by position, donors, nearest neighbours, names.
"""
