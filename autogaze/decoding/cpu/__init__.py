"""The back end for CPUs: the decoder in C++, compiled on first use."""
