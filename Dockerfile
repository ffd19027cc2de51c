# ebu without a GPU. Build and run it from the root of the repository:
#
#   docker build -t ebu --build-arg PIP_EXTRA_INDEX_URL=ADDRESS .
#   docker run --rm -v "$PWD/runs:/home/ebu/runs" ebu ebu-train --game pong --frames 1M
FROM python:3.11-slim-bookworm

WORKDIR /ebu
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY ebu ebu
COPY agents agents
COPY envs envs
# The address that PyTorch's installation page shows for "Linux, Pip, CPU": pip then takes the CPU
# build of the same version. Without it the build for CUDA is installed, which is 2.5 GB larger.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt '.[export,hub]'

RUN useradd --create-home --uid 1000 ebu && install -d -o ebu /home/ebu/runs
USER 1000
WORKDIR /home/ebu
CMD ["ebu-train", "--help"]
