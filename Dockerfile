# docker build -t autogaze .                                  for CPUs and NVIDIA GPUs
# docker build -t autogaze:cpu --build-arg VARIANT=cpu .      for CPUs only, several GB smaller
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" autogaze gaze /data/clip.mp4 --out /data/out
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" autogaze train --preset base --data /data/videos --out /data/run
#
# The image is about 7 GB, 4.5 of them PyTorch with CUDA (measured by its steps in an empty Debian); the driver comes from
# the host. g++ adds about 200 MB:
# the decoder for CPUs is compiled at its first use, and Triton compiles launchers for its kernels. Any user may run it,
# so that results belong to whoever started it; kernels that were compiled are kept in /home/user, which may be a volume.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
ARG VARIANT=cuda
ARG EXTRAS=all

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/autogaze
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY autogaze autogaze
# what is there already is not fetched again: wheels without CUDA first, of the pinned versions
RUN case "$VARIANT" in \
        cuda) ;; \
        cpu) pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt torch torchvision ;; \
        *) echo "VARIANT must be cuda or cpu, got $VARIANT" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]" \
    && useradd --create-home user \
    && chmod 1777 /home/user
ENV HOME=/home/user USER=user NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER user
WORKDIR /data
ENTRYPOINT ["autogaze"]
CMD ["--help"]
