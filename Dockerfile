# ebu without a GPU. Build and run it from the root of the repository:
#
#   docker build -t ebu .
#   docker run --rm -v "$PWD/runs:/work/runs" ebu ebu-train --game pong --frames 1M
FROM python:3.11-slim-bookworm

WORKDIR /ebu
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY ebu ebu
COPY agents agents
COPY envs envs
# The CPU build of the same version comes before the one for CUDA, which is 2.5 GB larger.
RUN pip install --no-cache-dir -c constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu '.[export,hub]'

RUN useradd --create-home --uid 1000 ebu && mkdir -p /work/runs && chown -R ebu /work
USER 1000
WORKDIR /work
CMD ["ebu-train", "--help"]
