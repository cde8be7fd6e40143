#!/usr/bin/env bash
# ml-collections 1.1.0: ConfigDict.copy_and_resolve_references() and the types of fields.
#
# A field that takes several types, FieldReference(32, field_type=object), takes a tuple, too; and
# placeholder(float), which is None, takes no text.
#
# Expected: the copy's fields take what those of the original take, and refuse what they refuse.
# Seen: a field of the copy has the type of the value that it has just then. So the one raises
# TypeError for the tuple, and the other, of type None, takes any text.
# We change such fields of a copy within ignore_type() (trainer.py, interop/diffusers.py), and check
# the types of all fields ourselves (config/fields.py).
#
# Ends with 0 while that is so, and with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ml-collections==1.1.0
"$folder/venv/bin/python" - <<'PYTHON'
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def takes(config, name, value):
  try:
    config[name] = value
  except TypeError:
    return False
  return True


def make():
  return ConfigDict({'size': FieldReference(32, field_type=object), 'rate': placeholder(float)})


configs = make(), make().copy_and_resolve_references()
tuples = [takes(config, 'size', (48, 64)) for config in configs]
texts = [takes(config, 'rate', 'fast') for config in configs]
print(f'takes a tuple: original {tuples[0]}, copy {tuples[1]} (expected: True, True)')
print(f'takes a text for a float: original {texts[0]}, copy {texts[1]} (expected: False, False)')
raise SystemExit(0 if (tuples, texts) == ([True, False], [False, True]) else 1)
PYTHON
