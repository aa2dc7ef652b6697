#!/usr/bin/env bash
# Measures serving on a GPU: ViT-B/32 and ViT-L/14 in float16, from JPEG files to stored vectors.
# Needs shoal[gpu], and shoal[export] to make the models. Their weights are random: speed does not
# depend on them. Models that are in DIRECTORY already are not made again.
set -euo pipefail

PROVIDER="${PROVIDER:-cuda}"
MODELS="${MODELS:-ViT-B-32-quickgelu ViT-L-14-quickgelu}"
DIRECTORY="${DIRECTORY:-./bench-models}"
COUNT="${COUNT:-8192}"
ROUNDS="${ROUNDS:-3}"

mkdir -p "$DIRECTORY"
for model in $MODELS; do
  ready="$DIRECTORY/$model"
  if [ ! -d "$ready" ]; then
    made="$DIRECTORY/$model-float32"
    [ -d "$made" ] || shoal model export open_clip "$model" --random-seed 0 --output "$made"
    shoal model variant "$made" float16 --output "$ready"
  fi
  shoal bench embed --model "$ready" --provider "$PROVIDER" --count "$COUNT" --rounds "$ROUNDS" \
    ${PROCESSES:+--processes "$PROCESSES"}
done
