"""Looking at a clip as a game: a Gymnasium environment for people who bring their own algorithm.

One episode is one clip. An action takes one patch of the current frame, or stops looking at it; the reward is how
much the frame's reconstruction loss falls, minus a price a patch. Example with 265 patches a frame: actions 0 to 264
take a patch, 265 goes on to the next frame. `action_masks()` says what is left to take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.search import attempt, commit, look, start

Observation = dict[str, np.ndarray]


class GazeEnv(gymnasium.Env[Observation, np.int64]):
    """Choose patches of a clip, frame by frame.

    Observation (a dict of float32 arrays):
        frames (1 + past, 3, H, W): the frames before (zeros where there are none) and, last, the current one.
        taken (P,): 1 where a patch of the current frame is taken already.
        seen (P,): 1 / (1 + frames since the patch was last taken), 0 if never.

    Args:
        clips: (T, 3, H, W) float, preprocessed, all of one size.
        reconstructor: its loss is the score.
        gazing_ratio: largest share of a frame's patches; then the next frame comes by itself.
        patch_price: reconstruction loss that a patch must be worth.
        past_frames: earlier frames in an observation (AutoGaze's encoder at published size sees 2).

    Raises:
        ValueError: if there is no clip, or clips differ in size.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        clips: Sequence[Tensor],
        reconstructor: Reconstructor,
        gazing_ratio: float = 0.1,
        patch_price: float = 0.0005,
        past_frames: int = 2,
    ) -> None:
        if not clips or any(clip.ndim != 4 or clip.shape[1:] != clips[0].shape[1:] for clip in clips):
            raise ValueError(
                "clips must be (T, 3, H, W) of one size and at least one, "
                f"got {[tuple(clip.shape) for clip in clips][:4]}"
            )
        self.clips, self.past_frames, self.patch_price = list(clips), past_frames, patch_price
        self.reconstructor = reconstructor.eval().requires_grad_(False)
        self.grid = reconstructor.grid
        self.budget, self.stop = self.grid.budget(gazing_ratio), self.grid.patches_per_frame
        patches = self.grid.patches_per_frame
        self.action_space = spaces.Discrete(patches + 1)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # Dict[Any] is what the stub has
            {
                "frames": spaces.Box(-np.inf, np.inf, (1 + past_frames, *clips[0].shape[1:]), np.float32),
                "taken": spaces.Box(0, 1, (patches,), np.float32),
                "seen": spaces.Box(0, 1, (patches,), np.float32),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a clip: a random one, or `options={"clip": index}`."""
        super().reset(seed=seed)
        chosen = (options or {}).get("clip")
        self.clip = int(self.np_random.integers(len(self.clips))) if chosen is None else int(chosen)
        self.video = self.clips[self.clip]
        self.mask = torch.zeros(1, len(self.video), self.grid.patches_per_frame, dtype=torch.bool)
        self.frame, memory = 0, start(self.reconstructor, 1)
        self.sight = look(self.reconstructor, memory, self.video[None, 0])
        self.loss = self._frame_loss()
        return self._observe(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a patch or stop; taking one again changes nothing and costs its price."""
        action, reward = int(action), 0.0
        if not 0 <= action <= self.stop:
            raise ValueError(f"action must be in [0, {self.stop}] (a patch, or {self.stop} to stop), got {action}")
        if action != self.stop:
            self.mask[0, self.frame, action] = True
            loss = self._frame_loss()
            reward, self.loss = self.loss - loss - self.patch_price, loss
        if action == self.stop or int(self.mask[0, self.frame].sum()) >= self.budget:
            self._next_frame()
        return self._observe(), reward, self.frame == len(self.video), False, self._info()

    def action_masks(self) -> np.ndarray:
        """(P + 1,) bool: actions that do something; stopping always does."""
        frame = min(self.frame, len(self.video) - 1)
        return np.append(~self.mask[0, frame].numpy(), True)

    def gaze(self) -> Gaze:
        """The gaze so far, of one clip, ids increasing."""
        return Gaze.from_patch_mask(self.mask, self.grid)

    @torch.no_grad()
    def _frame_loss(self) -> float:
        return float(attempt(self.reconstructor, self.sight, self.mask[:, None, self.frame]).loss)

    @torch.no_grad()
    def _next_frame(self) -> None:
        memory = commit(self.reconstructor, self.sight, self.mask[:, self.frame])
        self.frame += 1
        if self.frame < len(self.video):
            self.sight = look(self.reconstructor, memory, self.video[None, self.frame])
            self.loss = self._frame_loss()

    def _observe(self) -> Observation:
        frame = min(self.frame, len(self.video) - 1)
        frames = torch.zeros(self.observation_space["frames"].shape)  # type: ignore[index]
        recent = self.video[max(0, frame - self.past_frames) : frame + 1]
        frames[-len(recent) :] = recent
        return {
            "frames": frames.numpy(),
            "taken": self.mask[0, frame].numpy().astype(np.float32),
            "seen": self._seen(frame),
        }

    def _seen(self, frame: int) -> np.ndarray:
        age = torch.arange(frame, -1, -1)[:, None]
        freshness = self.mask[0, : frame + 1] / (1 + age)
        return freshness.amax(0).numpy().astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"clip": self.clip, "frame": self.frame, "loss": self.loss}
