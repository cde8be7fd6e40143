#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.3.5: save_file of an array that is not C-ordered.
#
# Expected: the file holds the array's values, as with 0.7.0, or save_file raises.
# Seen: save_file returns without a word, and load_file gives the shape back with the values in the
# order of memory: transposed kernels, as conversions between layouts make them, are scrambled.
# We hand over C-ordered arrays alone, and assert it (interop/safetensors_file.py).
#
# Ends with 0 while that is so, and with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

run() {
  "$folder/venv/bin/pip" install -q "safetensors==$1" numpy==2.3.5
  "$folder/venv/bin/python" - "$folder/file.safetensors" <<'PYTHON'
import sys
import numpy as np
from safetensors.numpy import load_file, save_file

array = np.arange(6, dtype=np.float32).reshape(2, 3).T  # [3, 2], not C-ordered
save_file({'kernel': array}, sys.argv[1])
print('kept' if (load_file(sys.argv[1])['kernel'] == array).all() else 'scrambled')
PYTHON
}

before=$(run 0.7.0)
after=$(run 0.8.0)
echo "0.7.0: $before; 0.8.0: $after (expected: kept)"
[ "$before" = kept ] && [ "$after" = scrambled ]
