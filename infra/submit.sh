#!/usr/bin/env bash
# Run a carrara command as a job on a Ray cluster, with this checkout's code:
#
#     RAY_API_SERVER_ADDRESS=http://head:8265 infra/submit.sh train s3://b/corpus s3://b/run --config infra/configs/demo.toml
#
# Waits for the job's end and exits with its code. Options of `ray job submit` itself, such as
# --no-wait, go into RAY_SUBMIT_OPTIONS. Paths must be ones that the cluster can reach.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the job does not need and what must not leave this machine.
excludes='[".git", ".venv", ".env*", "demo/", "demo-fast/", "tests/", "benchmarks/", "docs/", "*.tar", ".*_cache"]'

# `ray start` asks for a token where ~/.ray has one, but `ray job submit` sends it only when told to.
if [[ -z ${RAY_AUTH_MODE:-} && ( -n ${RAY_AUTH_TOKEN:-} || -f ~/.ray/auth_token ) ]]; then
  export RAY_AUTH_MODE=token
fi

# shellcheck disable=SC2086  # the options are words to split
exec ray job submit ${RAY_SUBMIT_OPTIONS:-} --working-dir . \
  --runtime-env-json "{\"excludes\": $excludes}" \
  -- python carrara.py "$@"
