# The steps of the README: docker build -t onnxsep . && docker run --rm -v "$PWD:/data" -w /data onnxsep rewrite in.onnx out.onnx --mode depthwise
FROM python:3.12-slim
WORKDIR /onnxsep
COPY pyproject.toml README.md LICENSE ./
COPY onnxsep onnxsep
COPY passes passes
RUN pip install --no-cache-dir .
ENTRYPOINT ["onnxsep"]
