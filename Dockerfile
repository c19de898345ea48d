# docker build -t strata . && docker run --name strata strata; then docker cp strata:/strata/reports .
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
# The CPU build of PyTorch. For a GPU, remove this line and run with --gpus all.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /strata
COPY . .
RUN git config --global user.name strata && git config --global user.email strata@localhost && make setup
CMD ["make"]
