#!/usr/bin/env bash
# Tunes a ranker on a Cloud TPU pod: creates the pod, installs, and runs one command on all hosts.
#
#   NAME=palr ZONE=us-west4-a TYPE=v5litepod-16 tools/launch/tpu_vm.sh \
#     --config configs/llama-7b/v5e-16.yaml --runs gs://my-bucket/runs \
#     --ranker.weights gs://my-bucket/weights/llama-7b --data.path gs://my-bucket/data/ml-1m.zip
#
# Its arguments are those of `palr finetune`; STAGE=retrieve or another runs that stage instead. The pod's service account must be allowed to use the
# bucket.
#
# Run it again after a preemption: an existing pod is reused, and the run resumes from its newest
# checkpoint in the bucket. The pod is kept at the end; the last line shows how to delete it.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${1:?name a config: --config configs/llama-7b/v5e-16.yaml}" "${NAME:?}" "${ZONE:?}" "${TYPE:?}"
case $TYPE in
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) version=tpu-ubuntu2204-base ;;
esac

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

tpu describe "$NAME" >/dev/null 2>&1 ||
  tpu create "$NAME" --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
tpu scp "$archive" "$NAME":palr_jax.tar.gz --worker=all

# The hosts' own Python is older than 3.11.
on_all '
  set -e
  mkdir -p palr_jax && tar -xzf palr_jax.tar.gz -C palr_jax
  cd palr_jax
  python3 -m pip install -q --user uv
  test -d venv || ~/.local/bin/uv venv -q --python 3.12 venv
  ~/.local/bin/uv pip install -q --python venv/bin/python -e ".[tpu,gcs]"
'
on_all "cd palr_jax && exec venv/bin/palr ${STAGE:-finetune} $(printf '%q ' "$@")"
echo "done. Delete the pod: gcloud compute tpus tpu-vm delete $NAME --zone=$ZONE"
