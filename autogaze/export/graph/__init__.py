"""Writing the ONNX graph: the operations of the network and of decoding, unrolled, with the weights in it."""
