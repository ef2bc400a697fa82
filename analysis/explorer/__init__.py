"""The explorer: heatmap, features, images, graphs and steering of one CLT on linked pages."""
