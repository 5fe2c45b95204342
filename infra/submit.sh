#!/usr/bin/env bash
# Run a carrara command as a job on a Ray cluster, with this checkout's code:
#
#     RAY_API_SERVER_ADDRESS=http://head:8265 infra/submit.sh train s3://b/corpus s3://b/run --config infra/configs/demo.toml
#
# Waits for the job's end and exits with its code. A job that was lost with its machine or with the
# cluster's head is submitted again, up to SUBMIT_TRIES times in all (5), and goes on where it
# stopped, as every command does. Options of `ray job submit` itself, such as --no-wait, go into
# RAY_SUBMIT_OPTIONS. Paths must be ones that the cluster can reach.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Sent is what is listed here, as keys, data and models may lie beside it: the code, by kinds of
# files, and of what lies at the root programs and settings of the user's own. Nothing hidden.
# gitignore's patterns: the last one that fits decides, and "!" takes along.
excludes='[
  "/*/**/*.*", "!*.py", "!*.toml", "!*.html", "!*.css", "!*.js", "!*.svg", "!*.md", "!*.csv",
  "!/examples/emoji/pictures.zip", "!/retrieval/models/**",
  "/*", "!.", "!/*.py", "!/*.toml", "!/constraints.txt",
  "!/infra", "!/pipeline", "!/retrieval", "!/training", "!/examples",
  ".?*", "__pycache__"
]'
lost=75          # infra/job.py's exit code
patience_s=600   # for a head that comes back

# `ray start` asks for a token where ~/.ray has one, but `ray job submit` sends it only when told to.
if [[ -z ${RAY_AUTH_MODE:-} && ( -n ${RAY_AUTH_TOKEN:-} || -f ~/.ray/auth_token ) ]]; then
  export RAY_AUTH_MODE=token
fi

submit() { # JOB_ID ARGUMENTS
  local job=$1
  shift
  # shellcheck disable=SC2086  # the options are words to split
  timeout 120 ray job submit --no-wait --submission-id "$job" ${RAY_SUBMIT_OPTIONS:-} \
    --working-dir . --runtime-env-json "{\"excludes\": $excludes}" -- python carrara.py "$@"
}

for ((try = 1; ; try++)); do
  job="carrara-$(date -u +%Y%m%dT%H%M%S)-$RANDOM"
  give_up=$((SECONDS + (try > 1 ? patience_s : 0)))
  until submit "$job" "$@"; do
    ((SECONDS < give_up)) || exit 1
    sleep 2
  done
  [[ " ${RAY_SUBMIT_OPTIONS:-} " == *" --no-wait "* ]] && exit 0
  code=0
  python -m infra.job "$job" || code=$?
  [[ $code == "$lost" && $try -lt ${SUBMIT_TRIES:-5} ]] || break
  echo "submitting it again, $((try + 1)) of ${SUBMIT_TRIES:-5}" >&2
done
[[ $code == "$lost" ]] && exit 1
exit "$code"
