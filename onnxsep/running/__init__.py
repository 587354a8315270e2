"""Running models in ONNX Runtime, and comparing what they give."""
