"""Decoding: a network and frames in, ids of patches out. `reference` is the definition, in PyTorch; `cpu` does the same
in C++, `cuda` in Triton kernels and a cluster kernel."""
