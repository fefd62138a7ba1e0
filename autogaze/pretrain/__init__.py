"""Training: reconstructor, greedy labels, next-token prediction. Needs the extra `autogaze[train]`."""
