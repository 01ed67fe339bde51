# An image for CPUs: docker build -t internal-policy . && docker run --rm internal-policy scan (docs/install.md)
FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /source
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE ./
COPY internal_policy internal_policy
COPY app app
COPY data data
COPY notebooks notebooks
RUN python -m build --wheel

FROM python:3.11.14-slim-bookworm
# for the C++ kernel that measures hidden states, which is compiled for the processor that it runs on
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++=4:12.* \
    && rm -rf /var/lib/apt/lists/*
ARG EXTRAS=app,train
COPY constraints.txt /opt/
COPY --from=wheel /source/dist /opt/dist
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c /opt/constraints.txt "$(echo /opt/dist/*.whl)[${EXTRAS}]" \
    && useradd --create-home --uid 1000 reader \
    && install --directory --mode 1777 /work /cache
ENV INTERNAL_POLICY_CACHE=/cache/internal-policy HF_HOME=/cache/huggingface
USER 1000
WORKDIR /work
ENTRYPOINT ["internal-policy"]
CMD ["--help"]
