"""Linear algebra on plain arrays: least squares, low-rank products of factors, statistics. It knows no ONNX."""
