# docker build -t strata . && docker run --name strata strata; then docker cp strata:/strata/reports .
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
# docker build --build-arg PIP_EXTRA_INDEX_URL=… takes PyTorch from another index, such as that of its CPU builds.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /strata
COPY . .
RUN git config --global user.name strata && git config --global user.email strata@localhost && make setup
CMD ["make"]
