# docker build -t autogaze .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" autogaze gaze /data/clip.mp4 --out /data/out
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" autogaze train --preset base --data /data/videos --out /data/run
#
# One image for both: PyTorch's wheels carry CUDA, the driver comes from the host. They are most of its size; g++ adds
# about 200 MB: the decoder for CPUs is compiled at its first use, and Triton compiles launchers for its kernels. Any
# user may run it, so that results belong to whoever started it; kernels that were compiled are kept in /home/user,
# which may be a volume.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/autogaze
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY autogaze autogaze
RUN pip install --no-cache-dir --constraint constraints.txt ".[all]" \
    && useradd --create-home user \
    && chmod 1777 /home/user
ENV HOME=/home/user USER=user NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER user
WORKDIR /data
ENTRYPOINT ["autogaze"]
CMD ["--help"]
