#!/usr/bin/env bash
# Starts what an image starts, confined as it should run. Usage: try-image.sh worker|trainer
set -euo pipefail
target=$1
image=lora-$target
confined=(--rm --read-only --cap-drop ALL --security-opt no-new-privileges)

fail() {
    echo "$1" >&2
    exit 1
}
# Runs a container that is expected to fail, and keeps what it says in `said`. Neither `!`, which `set -e` passes over, nor
# a pipe, where the container's own failure would count, does that.
must_fail() {
    if said=$(docker run "$@" 2>&1); then fail "it ended well, and must not: docker run $*"; fi
}

if [ "$target" = worker ]; then
    small=("${confined[@]}" --memory 256m --memory-swap 256m)
    # It does not run as root, writes nothing, and says what is missing.
    test "$(docker run "${small[@]}" "$image" id -u)" = 10001
    docker run "${small[@]}" "$image" lora-worker --help >/dev/null
    must_fail "${small[@]}" "$image"
    grep --quiet SUPABASE_URL <<<"$said" || fail "without settings it does not name SUPABASE_URL: $said"
    # The health check fails where no worker runs, with a port and without.
    must_fail "${small[@]}" "$image" lora-worker healthcheck
    must_fail "${small[@]}" --env LORA_WORKER_HTTP_PORT=0 "$image" lora-worker healthcheck
else
    # torch is the base image's, and the kernels were compiled here.
    docker run --rm "$image" python -c "import torch; assert torch.version.cuda == '12.6', torch.version.cuda"
    docker run --rm "$image" python -c "import causal_conv1d_cuda"
    # The checks of the machine that need no GPU, with the image's own libraries.
    docker run --rm --env LORA_TRAINER_NEEDS_GPU=false --env LORA_TRAINER_LEAST_FREE_GB=0 "$image" \
        python -u -m lora_trainer.handler --test_input '{"input": {"kind": "fitness"}}'
fi
