"""A question about a video: `python examples/video_llm.py video.mp4 "What happens?"`."""

import argparse

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from autogaze import AutoGaze
from autogaze.mllm import GazedVideoLM


def main(video: str, question: str, model: str, gaze: str = "autogaze-base", tokens: int = 64, fps: float = 2) -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    llm = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").to(device).eval()
    gaze_model = AutoGaze.from_pretrained(gaze, device).to(llm.dtype)
    gazed = GazedVideoLM(llm, AutoProcessor.from_pretrained(model), gaze_model, gazing_ratio=0.1)
    content = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    prompt = gazed.prepare([{"role": "user", "content": content}], fps=fps, do_sample_frames=True)
    print(f"{prompt.visual_tokens} visual tokens instead of {prompt.dense_tokens}")
    (answer,) = gazed.decode(prompt, gazed.generate(prompt, max_new_tokens=tokens))
    print(answer)
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("--model", default="Qwen/Qwen3-VL-2B-Instruct", help="hub id or folder")
    parser.add_argument("--gaze", default="autogaze-base", help="gaze model: shipped name, hub id or folder")
    args = parser.parse_args()
    main(args.video, args.question, args.model, args.gaze)
