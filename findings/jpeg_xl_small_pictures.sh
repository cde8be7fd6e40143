#!/usr/bin/env bash
# pillow-jxl-plugin 1.3.8 (libjxl), Pillow 13.0.0, numpy 2.3.5: lossy JPEG XL of small pictures.
#
# Expected: a lower quality makes a smaller file, with a larger error.
# Seen: of an 8 x 8 picture, quality 18 makes a larger file than quality 20, with more than twice the
# error. Below 20 the encoder halves the picture before it codes it, and eight pixels have little to
# be halved: of a chessboard of single pixels grey is left. A curve of rate and distortion over
# qualities turns back on itself there; docs/codec.md compares with quality 40.
#
# Ends with 0 while that is so, and with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow-jxl-plugin==1.3.8 pillow==13.0.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys
import numpy as np
import PIL.Image
import pillow_jxl  # noqa: F401

y, x = np.mgrid[:8, :8]
ring = np.uint8(np.clip(255 - 80 * abs(np.hypot(x - 3.5, y - 3.5) - 2.5), 0, 255))
found = {}
for quality in (18, 20):
  stream = io.BytesIO()
  PIL.Image.fromarray(ring).save(stream, format='JXL', quality=quality)
  decoded = np.asarray(PIL.Image.open(stream).convert('L'), float)
  found[quality] = len(stream.getvalue()), np.sqrt(np.square(decoded - ring).mean())
  print(f'quality {quality}: {found[quality][0]} bytes, RMSE {found[quality][1]:.1f}')
(low_size, low_error), (size, error) = found[18], found[20]
print('expected: fewer bytes at 18; seen:', 'more' if low_size > size else 'fewer')
sys.exit(not (low_size > size and low_error > 2 * error))
PYTHON
