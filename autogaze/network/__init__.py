"""The network: frame encoder, gaze decoder and the residual map. It knows nothing of decoding, files or training."""
