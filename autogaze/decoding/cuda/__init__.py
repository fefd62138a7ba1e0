"""The back end for NVIDIA GPUs: Triton kernels in CUDA graphs, and a cluster kernel for few clips."""
