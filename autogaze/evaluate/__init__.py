"""Evaluation: how much of a clip a gaze keeps, against selectors without a network and against the greedy oracle.

Needs the extra `autogaze[train]` (the reconstructor judges).
"""
