# segpipe on the CPU, with plain ONNX Runtime and so without CUDA:
#   docker build -t segpipe . && docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" segpipe run -i scenes -m unet.onnx
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
COPY requirements-cpu.txt pyproject.toml README.md LICENSE ./
COPY segpipe segpipe
RUN python -m venv /opt/segpipe \
    && /opt/segpipe/bin/pip install --no-cache-dir --requirement requirements-cpu.txt \
    && /opt/segpipe/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12.11-slim-bookworm
COPY --from=build /opt/segpipe /opt/segpipe
RUN useradd --create-home --uid 10001 segpipe
ENV PATH=/opt/segpipe/bin:$PATH
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["segpipe"]
CMD ["--help"]
