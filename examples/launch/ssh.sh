#!/bin/bash
# ssh.sh HOSTS PROCESSES adapt --model FILE.py:function --data DATA --output RUN
# HOSTS: a file with a machine a line, the first of which writes. PROCESSES: on each machine, its GPUs (or 1 for a CPU).
# Each machine needs the same paths: this folder, an environment in .venv, the data. Only the first needs the output.
set -euo pipefail

mapfile -t hosts < <(grep -v '^ *\(#\|$\)' "$1")
processes=$2
shift 2
command=$(printf '%q ' "$@")
folder=$(printf '%q' "$PWD")
# FSDP2 instead of DDP: SETTINGS='ACCELERATE_USE_FSDP=true FSDP_VERSION=2' ssh.sh ...
pids=()
for rank in "${!hosts[@]}"; do
  # -tt: what runs there ends with the connection
  ssh -tt "${hosts[$rank]}" "cd $folder && ${SETTINGS:-} .venv/bin/torchrun \
    --nnodes ${#hosts[@]} --node_rank $rank --nproc_per_node $processes \
    --master_addr ${hosts[0]} --master_port 29500 --module equidial.cli $command" &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2> /dev/null || true' EXIT
for _ in "${pids[@]}"; do wait -n; done # the first that fails ends the others
