"""In front of a video LLM: its vision tower runs on what a gaze chose.

prompt = GazedVideoLM(model, processor, gaze, gazing_ratio=0.1).prepare(messages)
"""

from autogaze.mllm.gazed_lm import GazedVideoLM
from autogaze.mllm.prompt import Prompt
from autogaze.mllm.units import UnitGrid

__all__ = ["GazedVideoLM", "Prompt", "UnitGrid"]
