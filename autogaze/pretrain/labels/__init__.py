"""Labels: which patches a search would have looked at; found, stored and read back."""

from autogaze.pretrain.labels.make import LabelSettings, join_shards, make_labels

__all__ = ["LabelSettings", "join_shards", "make_labels"]
