"""VTAB-1k: 19 image classification data sets with 1,000 training pictures each, in three groups."""
