"""The form of an example: a dict with `input_ids` [T] and `labels` [T], which every batch is made of."""

from torch import Tensor

IGNORED = -100  # the label of a token that is not trained; what torch's cross_entropy ignores by default

Example = dict[str, Tensor]
