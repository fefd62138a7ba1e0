"""Reinforcement learning: reward, GRPO, the Gymnasium environment and its Stable-Baselines3 policy."""
