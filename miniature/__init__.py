"""The miniature: a small invented world, its plain text, its data sets and its pretrained backbones (see README.md)."""
