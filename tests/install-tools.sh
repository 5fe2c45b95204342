#!/usr/bin/env bash
# The programs that tests run beside Python: wget, which records a site as WARC; Chromium, which opens
# the pages; Prometheus, which scrapes commands; ip, which joins and parts rehearsed machines.
# Installs what is missing where apt-get can; elsewhere says what to install.
set -euo pipefail

declare -A package=([wget]=wget [chromium]=chromium [prometheus]=prometheus [ip]=iproute2)
packages=()
for program in "${!package[@]}"; do
  command -v "$program" >/dev/null || packages+=("${package[$program]}")
done
[ ${#packages[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing ${packages[*]} for the tests"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${packages[@]}" >/dev/null
else
  echo "the tests need ${packages[*]}: install with your package manager" >&2
  exit 2
fi
