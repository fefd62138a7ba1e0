# docker build -t autogaze . && docker run --rm -v "$PWD:/data" autogaze gaze /data/clip.mp4 --out /data/out
# With a GPU: docker run --gpus all ...
FROM python:3.11-slim-bookworm

WORKDIR /opt/autogaze
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY autogaze autogaze
RUN pip install --no-cache-dir --constraint constraints.txt ".[all]" \
    && useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["autogaze"]
CMD ["--help"]
