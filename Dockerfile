# The worker and the command line. Serving needs no torch; `--build-arg EXTRAS=train` adds it for
# `freshet train`, `freshet dayzero` and `freshet verify` (5 GB).
FROM python:3.11-slim
ARG EXTRAS=worker
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY freshet freshet
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home freshet
USER freshet
# Compiled kernels are kept where this user may write.
ENV NUMBA_CACHE_DIR=/home/freshet/.numba PYTHONUNBUFFERED=1
ENTRYPOINT ["freshet"]
