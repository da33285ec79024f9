#!/usr/bin/env bash
# Tunes a ranker on a Cloud TPU pod: makes the pod, installs, and runs the same command on all hosts.
#
#   NAME=palr ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket \
#     tools/launch/tpu_vm.sh configs/llama-7b/v5e-16.yaml
#
# Run it again after a preemption: a pod that is there is used, and the run goes on from its newest
# checkpoint in the bucket. The pod is kept at the end; the last line says how to delete it.
set -euo pipefail
cd "$(dirname "$0")/../.."

config=${1:?name a config, for example configs/llama-7b/v5e-16.yaml}
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${BUCKET:?}"
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
  mkdir -p palr_jax bucket && tar -xzf palr_jax.tar.gz -C palr_jax
  cd palr_jax
  python3 -m pip install -q --user uv
  test -d venv || ~/.local/bin/uv venv -q --python 3.12 venv
  ~/.local/bin/uv pip install -q --python venv/bin/python -e ".[tpu]"
'
# The bucket is a folder on every host: weights and data are read from it, the run directory lies in
# it. Checkpoints appear by renaming folders, and every host must see at once what another wrote.
on_all "
  set -e
  command -v gcsfuse >/dev/null || { echo 'install gcsfuse on the hosts first'; exit 1; }
  mountpoint -q bucket ||
    gcsfuse --config-file palr_jax/tools/launch/gcsfuse.yaml $BUCKET bucket
  cd palr_jax
  for folder in weights data runs; do mkdir -p ../bucket/\$folder; ln -sfn ../bucket/\$folder \$folder; done
  exec venv/bin/palr finetune --config $config
"
echo "done. Delete the pod: gcloud compute tpus tpu-vm delete $NAME --zone=$ZONE"
