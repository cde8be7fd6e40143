"""A codec: files whose size is the rate of Sec. 4.3 of Ho et al. 2020, and which can be decoded.

candidates and range_coder are integers; channel sends the chain, tail the exact example at its end;
table has what both sides know; format the bytes; progressive puts them together.
"""

from ddpm_jax.codec.channel import Search
from ddpm_jax.codec.format import Compressed, read_archive, read_file, write_archive
from ddpm_jax.codec.progressive import COMPLETIONS, Codec, Decoded, Goal, parse_goal
from ddpm_jax.codec.table import Table, fit_table

__all__ = [
  'COMPLETIONS',
  'Codec',
  'Compressed',
  'Decoded',
  'Goal',
  'Search',
  'Table',
  'fit_table',
  'parse_goal',
  'read_archive',
  'read_file',
  'write_archive',
]
